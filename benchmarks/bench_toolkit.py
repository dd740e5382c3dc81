"""The toolkit image without an engine: the Dockerfile's own install commands replayed, the result weighed and run.

The base image itself isn't there; it is counted with 150 MB. torch comes from the index that the Dockerfile names, or
from the one in the variable TORCH_INDEX.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from dockerfile import commands, copy_in, variables
from harness import Bench, absent, workplace

BASE, MOST = 150e6, 2e9


def main() -> None:
    bench = Bench("toolkit", __doc__ or "")
    if sys.platform != "linux":
        absent("Linux, as in the image", "run this on another machine")
    with workplace() as folder:
        folder.chmod(0o755)
        place, source = folder / "opt", folder / "src"
        copy_in("toolkit-build", source)
        start = time.perf_counter()
        env = os.environ | variables("toolkit-build") | {k: v for k, v in os.environ.items() if k == "TORCH_INDEX"}
        for line in commands("toolkit-build"):
            line = line.replace("/opt/compresskit", str(place)).replace("python -m venv", f"{sys.executable} -m venv")
            subprocess.run(["sh", "-ec", line], cwd=source, env=env, check=True, stdout=sys.stderr)
        minutes = (time.perf_counter() - start) / 60
        size = sum(path.lstat().st_size for path in place.rglob("*") if not path.is_dir())
        passed = size + BASE <= MOST
        about = f"Python {sys.version_info[0]}.{sys.version_info[1]}; {minutes:.1f} min; base image not counted"
        bench.row("unpacked, below the base image", "≤ 1.85 GB", f"{size / 1e9:.2f} GB", 1, about, passed)
        names = {path.name.lower() for path in place.glob("lib/python*/site-packages/*")}
        cuda = sorted(name for name in names if name.startswith(("nvidia", "triton", "cuda")))
        bench.row("packages of CUDA in it", "none", f"{len(cuda)}", len(names), " ".join(cuda), not cuda)
        user = 65532 if os.geteuid() == 0 and readable(Path(sys.executable).resolve()) else None
        for words in (["doctor"], ["demo", "--quiet", "-o", str(folder / "work" / "demo")]):
            code = run(place, folder / "work", words, user)
            who = f"as user {user}" if user else "as this user"
            bench.row(f"{words[0]} from it", "exit 0", f"exit {code}", 1, who, code == 0)
    bench.end()


def run(place: Path, work: Path, words: list[str], user: int | None) -> int:
    """Run the installed program in a folder of its own."""
    work.mkdir(exist_ok=True)
    work.chmod(0o777)
    env = {**variables("toolkit"), "PATH": f"{place}/bin:/usr/bin:/bin", "HOME": str(work)}
    other = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    return subprocess.run([place / "bin" / "compresskit", *words], cwd=work, env=env, check=False, **other).returncode


def readable(path: Path) -> bool:
    """Whether all users may read a file: an interpreter in somebody's home is not for others."""
    return all(place.stat().st_mode & 0o005 == 0o005 for place in (path, *path.parents))


if __name__ == "__main__":
    main()
