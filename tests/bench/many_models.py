"""Checks the versions that a service of many models, versions and applications responds with.

    make bench-many-models
    python -m tests.bench.many_models --models 20 --versions 12 --applications 10 --requests 10000

Prints times, memory, loads and evictions. The exit status is 1 if a request got a wrong version;
`tests.support.many_models` describes the check.
"""

from __future__ import annotations

import argparse
import sys

from tests.support.many_models import Options, check_versions


def main() -> None:
    options = parse_options()
    findings = check_versions(options)
    print(
        f"{options.models} models x {options.versions} versions, "
        f"{options.applications} applications\n"
    )
    print("| measurement | value |\n|---|---|")
    for name, value in findings.figures.items():
        print(f"| {name} | {value} |")
    for sentence in findings.wrong[:20]:
        print(sentence, file=sys.stderr)
    sys.exit(1 if findings.wrong else 0)


def parse_options() -> Options:
    defaults = Options()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in vars(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
