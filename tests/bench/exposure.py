"""Shows every socket of the service, and its responses without a key, as Markdown.

python -m tests.bench.exposure
"""

from __future__ import annotations

from tests.support.exposure import exposed, setups, table

_HEAD = "| address | process | HTTP/1.1 | HTTP/2 | gRPC | raw |"


def main() -> None:
    for name, setup in setups().items():
        if setup is None:
            print(f"This machine has no address for: {name}.\n")
            continue
        print(f"`{setup.name}`, {'with' if setup.keyed else 'without'} an application:\n")
        with exposed(setup) as service:
            print("\n".join([_HEAD, "|---" * 6 + "|", *table(service), ""]), flush=True)


if __name__ == "__main__":
    main()
