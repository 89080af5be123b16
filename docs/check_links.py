"""Check that every link within the project leads somewhere: files, headings, pictures; those of the README too.

Links to the repository on GitHub count as links within the project; every picture must be shown somewhere. Exit code 1
and a line a fault.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = re.compile(
    r"https://(?:github\.com/napari-wbc/napari-wbc/(?:blob|tree|raw)/main|raw\.githubusercontent\.com/napari-wbc/napari-wbc/main)/"
)
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?[^)]*\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def headings(file: Path) -> set[str]:
    """Anchors as GitHub and MyST make them."""
    found: set[str] = set()
    for line in re.findall(r"^#{1,6}\s+(.+)$", FENCE.sub("", file.read_text("utf-8")), re.MULTILINE):
        text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", line).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found


def broken(file: Path) -> list[str]:
    """Links of a file that lead nowhere."""
    faults = []
    for link in LINK.findall(FENCE.sub("", file.read_text("utf-8"))):
        own = HERE.match(link)
        if re.match(r"[a-z]+:", link) and not own:
            continue
        name, _, anchor = (link[own.end() :] if own else link).partition("#")
        target = ((ROOT if own else file.parent) / name).resolve() if name else file
        if not target.exists():
            faults.append(f"{file.relative_to(ROOT)}: {link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in headings(target):
            faults.append(f"{file.relative_to(ROOT)}: {link}: no such heading")
    return faults


if __name__ == "__main__":
    files = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    faults = [fault for file in files for fault in broken(file)]
    told = "".join(file.read_text("utf-8") for file in files)
    faults += [f"{p.relative_to(ROOT)}: shown nowhere" for p in (ROOT / "docs/images").iterdir() if p.name not in told]
    print("\n".join(faults) or f"links of {len(files)} files are whole")
    sys.exit(bool(faults))
