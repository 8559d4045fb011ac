"""Makes thousands of thumbnails of real photographs on all cores; a damaged image does not affect the others.

    pip install pillow scikit-learn            # scikit-learn has two sample photographs
    python examples/thumbnails.py              # 2,000 crops of them
    python examples/thumbnails.py ~/Pictures   # one thumbnail of each file in your folder

The program prints how many images it made per second, where they are, and why some failed. If you name no
folder, one of the images is a truncated copy of a photograph, which does fail.
"""

import argparse
import importlib.util
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps

from taskq import JobFailed, TaskQ

q = TaskQ("thumbnails")
Crop = tuple[int, int, int, int]  # left, upper, right, lower
Arguments = tuple[Path, Path, int, Crop | None]  # of one job


@q.task(retries=0, timeout=30)  # a damaged file will still be damaged a second later
def thumbnail(source: Path, target: Path, size: int, crop: Crop | None = None) -> int:
    """Makes one thumbnail and returns its size in bytes. The arguments are paths, not pictures.

    A job may run twice if its process dies at the wrong moment, so the file gets its final name at the very end.
    """
    with Image.open(source) as image:
        picture = image.crop(crop) if crop else image
        picture.thumbnail((size, size))
        unfinished = target.with_suffix(f".{os.getpid()}.tmp")
        ImageOps.exif_transpose(picture).convert("RGB").save(unfinished, "JPEG", quality=85)
    length = unfinished.stat().st_size
    unfinished.rename(target)
    return length


def of_folder(folder: Path, target: Path) -> Iterator[Arguments]:
    """Yields the arguments of one job for each file."""
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        yield path, target / f"{number:05}-{path.stem}.jpg", 256, None


def of_samples(count: int, target: Path) -> Iterator[Arguments]:
    """Yields the arguments for many crops of scikit-learn's photographs, and for a damaged copy of one."""
    spec = importlib.util.find_spec("sklearn")  # importing it would take a second
    if spec is None or spec.origin is None:
        raise SystemExit("the sample photographs are part of scikit-learn: pip install scikit-learn, or name a folder")
    images = Path(spec.origin).parent / "datasets" / "images"
    photographs = [images / "china.jpg", images / "flower.jpg"]
    damaged = target / "damaged.jpg"
    damaged.write_bytes(photographs[0].read_bytes()[:50_000])
    yield damaged, target / "never.jpg", 256, None
    chance = random.Random(1)
    for number in range(count):
        source = photographs[number % 2]
        left, upper, width = chance.randrange(400), chance.randrange(200), chance.randrange(100, 220)
        crop = left, upper, left + width, upper + width
        yield source, target / f"{source.stem}-{number:05}.jpg", chance.choice((64, 128, 192)), crop


def main() -> None:
    """Enqueues everything at once, then takes the results in order."""
    parser = argparse.ArgumentParser(description="Makes thumbnails on all cores.")
    target = Path(tempfile.gettempdir(), "taskq-thumbnails")
    parser.add_argument("folder", type=Path, nargs="?", help="your photographs (default: scikit-learn's two)")
    parser.add_argument("--to", type=Path, default=target, help="the folder for the thumbnails (default: %(default)s)")
    parser.add_argument(
        "--count", type=int, default=2_000, help="how many crops to make of the two photographs (default: %(default)s)"
    )
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    if options.folder:
        arguments = list(of_folder(options.folder.absolute(), options.to.absolute()))
    else:
        arguments = list(of_samples(options.count, options.to.absolute()))
    with q.fleet():
        start = time.perf_counter()
        jobs = thumbnail.enqueue_many(arguments)
        print(f"{len(jobs):,} jobs enqueued in {time.perf_counter() - start:.2f} s")
        lengths = []
        for (source, *_), job in zip(arguments, jobs, strict=True):
            try:
                lengths.append(job.result())
            except JobFailed as error:
                print(f"  {source.name} failed: {error.error_type}: {error.error_message}")
                continue
            if len(lengths) % 500 == 0:
                print(f"  {len(lengths):,} done")
        seconds = time.perf_counter() - start
    rate = len(lengths) / seconds
    print(f"{len(lengths):,} images ({sum(lengths) / 1e6:.1f} MB) in {seconds:.1f} s, {rate:,.0f} images/s")
    print(f"They are in {options.to}; {len(jobs) - len(lengths)} failed")


if __name__ == "__main__":
    main()
