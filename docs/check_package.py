"""Check what ``python -m build`` made: small, whole, without tests and test data.

``--version-is 0.2.0`` checks the version, too, as a release by tag does. Exit code 1 if something is wrong.
"""

import argparse
import sys
import tarfile
import zipfile
from pathlib import Path

DIST = Path(__file__).resolve().parent.parent / "dist"
LARGEST_MB = 10
NEEDED = (
    "napari.yaml", "py.typed", "sample_data/samples.json", "models/wbc8-mobilenetv2.safetensors",
    "models/wbc8-mobilenetv2.json",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version-is", default="")
    version = parser.parse_args().version_is
    (wheel,) = DIST.glob("*.whl")
    (source,) = DIST.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    megabytes = wheel.stat().st_size / 1e6
    faults = [f"{name} is missing" for name in NEEDED if f"napari_wbc/{name}" not in names]
    faults += [f"{name} does not belong in the wheel" for name in names
               if not name.startswith("napari_wbc") or "/tests/" in name]  # fmt: skip
    if megabytes > LARGEST_MB:
        faults.append(f"the wheel has {megabytes:.1f} MB, more than {LARGEST_MB}")
    if version and f"-{version}-" not in wheel.name:
        faults.append(f"{wheel.name} is not of version {version}")
    with tarfile.open(source) as archive:
        if not any(name.endswith("/LICENSE") for name in archive.getnames()):
            faults.append("the sdist has no LICENSE")
    print("\n".join(faults) or f"{wheel.name}: {megabytes:.1f} MB, {len(names)} files; {source.name}: "
          f"{source.stat().st_size / 1e6:.1f} MB")  # fmt: skip
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
