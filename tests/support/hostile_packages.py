"""Model packages as a stranger could make them, and what an attempt to load one costs.

    python -m tests.bench.hostile_packages  # prints them as a table

Each is loaded in a child of its own, with limits: the child reads the package, builds its network
and predicts its golden images, until it is refused. It is forked after everything is imported, so
that its memory counts from there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from eagleray.core.errors import UserError
from eagleray.imaging import ImageContract, named_contract
from eagleray.inference.predictor import Predictor
from eagleray.models.package import write_package
from eagleray.registry.references import load_model
from tests.support.memory import forget_peak, peak_bytes
from tests.support.models import small_package

__all__ = ["HOSTILE", "Attempt", "Hostile", "attempt"]

GIB = 2**30
SECONDS_ALLOWED = 20
"""After which a child is killed, however it fares."""
MEMORY_ALLOWED = 2 * GIB
"""Address space beyond what a child begins with; for old code that has no limits of its own."""


@dataclass(frozen=True)
class Hostile:
    """A package that must be refused.

    Attributes:
        name: What is wrong with it.
        make: Changes a good package in a folder.
        sentence: A part of the refusal.
    """

    name: str
    make: Callable[[Path], object]
    sentence: str

    def write(self, folder: Path) -> None:
        """Write the package into a folder that is new."""
        write_package(small_package(), str(folder))
        self.make(folder)


@dataclass(frozen=True)
class Attempt:
    """What an attempt to load a package cost.

    Attributes:
        seconds: Until it was refused.
        cpu_seconds: Of these, the seconds of computing, which others on the machine do not change.
        megabytes: Most memory above that of the process before.
        refusal: The sentence; empty where there was none.
        ended: How else it ended, such as `loaded`, `MemoryError` or a signal.
    """

    seconds: float
    cpu_seconds: float
    megabytes: float
    refusal: str
    ended: str


def attempt(reference: str) -> Attempt:
    """Load a package in a forked child, build its network and check its golden images."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        with os.fdopen(sender, "w") as answer:
            json.dump(_attempt_here(reference), answer)
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if not text:
        number = os.waitstatus_to_exitcode(status)
        return Attempt(SECONDS_ALLOWED, SECONDS_ALLOWED, float("nan"), "", f"exit status {number}")
    return Attempt(**json.loads(text))


def _attempt_here(reference: str) -> dict[str, Any]:
    signal.alarm(SECONDS_ALLOWED)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_ALLOWED
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = forget_peak()
    began, began_cpu = time.perf_counter(), time.process_time()
    refusal = ""
    try:
        package = load_model(reference).package
        package.build_module()
        predictor = Predictor(
            package, device="cpu", precision="float32", engine="eager", batch_size=1
        )
        predictor.require_healthy()
        ended = "loaded"
    except UserError as error:
        ended, refusal = "refused", str(error)
    except (Exception, MemoryError) as error:  # noqa: BLE001 - which the table shows
        ended = f"{type(error).__name__}: {error}"[:200]
    made = Attempt(
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - began_cpu,
        megabytes=(peak_bytes() - before) / 1e6,
        refusal=refusal,
        ended=ended,
    )
    return asdict(made)


# --- how packages are changed -----------------------------------------------------------------


def link_to(name: str, target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return make


def link_outside(name: str) -> Callable[[Path], None]:
    """Move a file out of the package; a link to it, with the right digest, stays."""

    def make(folder: Path) -> None:
        outside = folder.with_name(f"{folder.name}-outside")
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return make


def pipe(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


def folder_named(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return make


def socket_named(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mknod(folder / name, stat.S_IFSOCK | 0o600)

    return make


def empty_folders(count: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for number in range(count):
            (folder / f"f{number}").mkdir()

    return make


def deep_folders(depth: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        parent = os.open(folder, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("f", dir_fd=parent)
            below = os.open("f", os.O_RDONLY, dir_fd=parent)
            os.close(parent)
            parent = below
        os.close(parent)

    return make


def sparse(name: str, size: int, beginning: bytes = b"") -> Callable[[Path], None]:
    """Make a file as large as one likes, of holes."""

    def make(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(beginning)
            file.truncate(size)

    return make


def manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        content = json.loads((folder / "model.json").read_text())
        change(content)
        contract = content["contract"]
        with suppress(ValueError):  # what is no contract has no digest
            text = json.dumps(contract)
            content["contract_digest"] = ImageContract.model_validate_json(text).digest
        (folder / "model.json").write_text(json.dumps(content))

    return make


def manifest_text(change: Callable[[str], str]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        text = (folder / "model.json").read_text()
        changed = change(text)
        assert changed != text
        (folder / "model.json").write_text(changed)

    return make


def content(name: str, new: bytes) -> Callable[[Path], None]:
    """Replace a file, its digest as well."""

    def make(folder: Path) -> None:
        (folder / name).write_bytes(new)
        digest = hashlib.sha256(new).hexdigest()
        manifest(lambda fields: fields["files"].update({name: digest}))(folder)

    return make


def golden(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        fields = json.loads((folder / "golden.json").read_text())
        change(fields)
        content("golden.json", json.dumps(fields).encode())(folder)

    return make


def both(*makers: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for maker in makers:
            maker(folder)

    return make


def late(make: Callable[[], Callable[[Path], None]]) -> Callable[[Path], None]:
    """Make what is large only when it is wanted."""

    def made(folder: Path) -> None:
        make()(folder)

    return made


def header(tensors: dict[str, Any]) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def tensor(shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def many_tensors(count: int) -> bytes:
    return header(
        {f"t{number}": tensor([1], number * 4, number * 4 + 4) for number in range(count)}
    )


def whole_numbers() -> bytes:
    """Return weights that fit a package's network, but for the type of all of them."""
    return small_package().files["model.safetensors"].replace(b'"F32"', b'"I32"')


def costly_weights(size: int) -> bytes:
    """Return weights of some bytes, with nearly as long a header and as many tensors as may be."""
    count = 9_998
    tensors = {
        f"t{number:08d}" + "x" * 200: tensor([1] * 16, number * 4, number * 4 + 4)
        for number in range(count)
    }
    head = header(tensors)
    rest = size - len(head) - 200 - count * 4
    last = tensor([rest], count * 4, count * 4 + rest)
    tensors["last"] = {**last, "dtype": "U8"}
    return header(tensors) + bytes(count * 4 + rest)


def labels(count: int, form: str = "{}") -> Callable[[dict[str, Any]], None]:
    """Give a package this many labels, and its architecture as many outputs."""

    def change(fields: dict[str, Any]) -> None:
        fields["task"]["labels"] = [form.format(number) for number in range(count)]
        fields["architecture"]["num_outputs"] = count

    return change


def network(name: str, size: int = 224, **architecture: Any) -> Callable[[dict[str, Any]], None]:
    """Say that the weights are those of another network, of colour images."""

    def change(fields: dict[str, Any]) -> None:
        fields["architecture"].update(name=name, in_channels=3, **architecture)
        contract = named_contract("whole-image", size=size)
        fields["contract"] = json.loads(contract.to_json())

    return change


def contract(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["contract"].update(changes)


def hierarchy(pairs: Iterable[tuple[str, Any]]) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["hierarchy"].update(pairs)


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of one colour, of a few hundred kilobytes whatever its size."""
    buffer = io.BytesIO()
    Image.new("RGBA", (1, 1)).save(buffer, format="PNG")
    good = buffer.getvalue()
    compressor = zlib.compressobj(1)
    row = b"\0" * (1 + 4 * width)
    data = b"".join([*(compressor.compress(row) for _ in range(height)), compressor.flush()])

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    size = struct.pack(">II", width, height) + good[24:29]
    return good[:8] + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def of_golden_png_bomb(width: int, height: int) -> Callable[[Path], None]:
    return late(lambda: content("golden/00.png", png_bomb(width, height)))


def many_files(count: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for number in range(count):
            (folder / f"golden/x{number}.png").touch()

    return make


def many_golden_images(count: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        image = (folder / "golden/00.png").read_bytes()
        digest = hashlib.sha256(image).hexdigest()
        names = [f"golden/x{number}.png" for number in range(count)]
        for name in names:
            (folder / name).write_bytes(image)
        fields = json.loads((folder / "golden.json").read_text())
        outputs = fields["images"][0]["outputs"]
        fields["images"] = [{"file": name, "outputs": outputs} for name in names]
        content("golden.json", json.dumps(fields).encode())(folder)
        manifest(lambda fields: fields["files"].update(dict.fromkeys(names, digest)))(folder)

    return make


def golden_folder_elsewhere(folder: Path) -> None:
    outside = folder.with_name(f"{folder.name}-outside")
    (folder / "golden").rename(outside)
    (folder / "golden").symlink_to(outside)


def folder_of_everything(folder: Path) -> None:
    (folder / "all").symlink_to("/")


def attributes(count: int, unknown: int) -> list[dict[str, Any]]:
    extra = {f"u{number}": 0 for number in range(unknown)}
    return [
        {"kind": "number", "name": f"a{number}", "mean": 0.0, "std": 1.0, **extra}
        for number in range(count)
    ]


def set_tolerance(value: float) -> Callable[[Path], None]:
    return golden(lambda fields: fields.update(tolerance=value))


HOSTILE = [
    Hostile("model.json is a link to /dev/zero", link_to("model.json", "/dev/zero"), "is a link"),
    Hostile(
        "a golden image is a link to /dev/zero", link_to("golden/00.png", "/dev/zero"), "is a link"
    ),
    Hostile(
        "a golden image is a link to a file outside", link_outside("golden/00.png"), "is a link"
    ),
    Hostile(
        "the weights are a link to a file outside", link_outside("model.safetensors"), "is a link"
    ),
    Hostile("golden/ is a link to another folder", golden_folder_elsewhere, "'golden'"),
    Hostile("a link to / beside the files", folder_of_everything, "'all'"),
    Hostile("model.json is a named pipe", pipe("model.json"), "not a regular file"),
    Hostile("the weights are a named pipe", pipe("model.safetensors"), "not a regular file"),
    Hostile("model.json is a folder", folder_named("model.json"), "not a regular file"),
    Hostile("model.json is a socket", socket_named("model.json"), "is a socket"),
    Hostile("a link that leads nowhere", link_to("golden/01.png", "/nonexistent"), "is a link"),
    Hostile("5,000 empty folders", empty_folders(5000), "folders"),
    Hostile("folders 400 deep", deep_folders(400), "folders"),
    Hostile("60 GB of model.json, sparse", sparse("model.json", 60 * GIB), "bytes"),
    Hostile("60 GB of weights, sparse", sparse("model.safetensors", 60 * GIB), "header"),
    Hostile(
        "60 GB of weights, sparse, with a header that says so",
        sparse(
            "model.safetensors",
            60 * GIB + len(header({"w": tensor([15 * GIB], 0, 60 * GIB)})),
            header({"w": tensor([15 * GIB], 0, 60 * GIB)}),
        ),
        "does not fit lenet5",
    ),
    Hostile("10 GB of a golden image, sparse", sparse("golden/01.png", 10 * GIB), "bytes"),
    Hostile("10 GB of golden.json, sparse", sparse("golden.json", 10 * GIB), "bytes"),
    Hostile(
        "a header of 900,000 tensors",
        late(lambda: content("model.safetensors", many_tensors(900_000) + bytes(3_600_000))),
        "header",
    ),
    Hostile(
        "a header of 30,000 tensors",
        late(lambda: content("model.safetensors", many_tensors(30_000) + bytes(120_000))),
        "header",
    ),
    Hostile(
        "a header of 2^63 bytes",
        content("model.safetensors", struct.pack("<Q", 2**63) + bytes(100)),
        "header",
    ),
    Hostile(
        "a tensor of 400,000 dimensions",
        content("model.safetensors", header({"w": tensor([1] * 400_000, 0, 4)}) + bytes(4)),
        "header",
    ),
    Hostile(
        "two tensors in the same bytes",
        content(
            "model.safetensors",
            header({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}) + bytes(4),
        ),
        "header",
    ),
    Hostile(
        "a tensor beyond the end of the file",
        content("model.safetensors", header({"w": tensor([4], 4, 20)}) + bytes(16)),
        "header",
    ),
    Hostile(
        "a tensor of another length than its shape",
        content("model.safetensors", header({"w": tensor([2**40], 0, 4)}) + bytes(4)),
        "header",
    ),
    Hostile(
        "a tensor of an unknown type",
        content(
            "model.safetensors",
            header({"w": {**tensor([1], 0, 4), "dtype": "F4096"}}) + bytes(4),
        ),
        "header",
    ),
    Hostile(
        "weights that are whole numbers",
        late(lambda: content("model.safetensors", whole_numbers())),
        "of type I32",
    ),
    Hostile(
        "112 MiB of weights with the costliest header that is parsed",
        late(lambda: content("model.safetensors", costly_weights(112 * 2**20))),
        "does not fit lenet5",
    ),
    Hostile(
        "VGG-16 with a million labels",
        manifest(lambda fields: (labels(1_000_000)(fields), network("vgg16")(fields))),
        "strings",
    ),
    Hostile(
        "VGG-16 with 200,000 labels and the weights of LeNet-5",
        both(
            manifest(lambda fields: (labels(200_000)(fields), network("vgg16")(fields))),
            golden(lambda fields: fields.update(images=[])),
        ),
        "does not fit vgg16",
    ),
    Hostile(
        "RegNet-Y 128 GF with the weights of LeNet-5",
        manifest(network("regnet_y_128gf")),
        "does not fit regnet_y_128gf",
    ),
    Hostile(
        "a vision transformer of 8,192 pixels with the weights of LeNet-5",
        manifest(network("vit_l_16", size=224, image_size=8192)),
        "does not fit vit_l_16",
    ),
    Hostile(
        "a vision transformer of 225 pixels, which is no multiple of 16",
        manifest(network("vit_b_16", size=225, image_size=225)),
        "vit_b_16",
    ),
    Hostile(
        "40 MB of hierarchy",
        manifest(hierarchy((f"label-{number:07d}", "parent") for number in range(1_300_000))),
        "bytes",
    ),
    Hostile(
        "7 MB of hierarchy",
        manifest(hierarchy((f"{number:x}", "p") for number in range(500_000))),
        "strings",
    ),
    Hostile(
        "a hierarchy with 300,000 faults",
        manifest(hierarchy((f"{number:x}", 0) for number in range(300_000))),
        "hierarchy",
    ),
    Hostile(
        "a hierarchy 100,000 levels deep",
        manifest(hierarchy((f"{number:x}", f"{number + 1:x}") for number in range(100_000))),
        "hierarchy",
    ),
    Hostile(
        "a hierarchy that is a circle",
        manifest(hierarchy([("a", "b"), ("b", "a")])),
        "its own ancestor",
    ),
    Hostile(
        "400,000 fields that no package has",
        manifest(lambda fields: fields.update({f"x{number}": 0 for number in range(400_000)})),
        "entries",
    ),
    Hostile(
        "300 attributes with 2,000 unknown fields each",
        manifest(lambda fields: fields.update(attributes=attributes(300, 2000))),
        "values",
    ),
    Hostile(
        "brackets 100,000 deep",
        manifest_text(lambda text: text.replace("{}", "[" * 100_000 + "]" * 100_000, 1)),
        "arrays and objects",
    ),
    Hostile(
        "brackets 500 deep",
        manifest_text(lambda text: text.replace("{}", "[" * 500 + "]" * 500, 1)),
        "recursion limit",
    ),
    Hostile(
        "5 million empty lists",
        manifest_text(lambda text: text.replace('"hierarchy": {}', f'"x": [{"[]," * 5_000_000}0]')),
        "model.json",
    ),
    Hostile(
        "a metric that is no number",
        manifest_text(lambda text: text.replace('"accuracy": 0.5', '"accuracy": NaN')),
        "every number must be finite",
    ),
    Hostile(
        "a number of a million digits",
        manifest_text(lambda text: text.replace('"accuracy": 0.5', f'"accuracy": {"9" * 10**6}')),
        "model.json",
    ),
    Hostile("400,000 labels", manifest(labels(400_000)), "labels"),
    Hostile("three labels of 4 MB", manifest(labels(3, "{}" + "x" * 4_000_000)), "labels"),
    Hostile(
        "an architecture's name of 4.5 MB, with escape sequences",
        manifest(lambda fields: fields["architecture"].update(name="\x1b[2J\n" * 900_000)),
        "architecture.name",
    ),
    Hostile(
        "15 MB in one label, with a letter that makes Python take 4 bytes for each",
        manifest(labels(3, "{}\U0001f600" + "x" * 5_000_000)),
        "labels",
    ),
    Hostile(
        "22 MB in one name of golden.json, likewise",
        golden(lambda fields: fields["images"][0].update(file="\U0001f600" + "x" * 22_000_000)),
        "file",
    ),
    Hostile(
        "249,999 labels that do not belong to the network",
        manifest(labels(249_999)),
        "golden.json",
    ),
    Hostile("golden images that may differ by -1", set_tolerance(-1.0), "tolerance"),
    Hostile("golden images that may differ by NaN", set_tolerance(float("nan")), "NaN or Infinity"),
    Hostile(
        "a contract that scales to 8,192 pixels before it cuts",
        manifest(contract(resize={"mode": "shortest_side", "size": 8192}, crop=[32, 32])),
        "8,192 x 8,192",
    ),
    Hostile(
        "a golden image of 16 million pixels, which may be",
        both(
            manifest(contract(max_pixels=178_000_000)),
            of_golden_png_bomb(4096, 4096),
        ),
        "golden images",
    ),
    Hostile("golden images that may differ by 1e300", set_tolerance(1e300), "tolerance"),
    Hostile("golden images that may differ by infinity", set_tolerance(1e999), "NaN or Infinity"),
    Hostile(
        "a contract of 8,192 x 8,192 pixels",
        manifest(contract(resize={"mode": "exact", "height": 8192, "width": 8192})),
        "8,192 x 8,192",
    ),
    Hostile(
        "a contract of images of 10^18 bytes", manifest(contract(max_bytes=10**18)), "max_bytes"
    ),
    Hostile("5,000 golden images", many_golden_images(5000), "files"),
    Hostile("100 golden images", many_golden_images(100), "files"),
    Hostile("20,000 files that are not listed", many_files(20_000), "holds"),
    Hostile(
        "a golden image of 169 million pixels",
        both(
            manifest(contract(max_pixels=178_000_000)),
            of_golden_png_bomb(13_000, 13_000),
        ),
        "golden",
    ),
    Hostile(
        "golden.json with two million outputs",
        golden(lambda fields: fields["images"][0].update(outputs=[0.5] * 2_000_000)),
        "golden.json",
    ),
]
