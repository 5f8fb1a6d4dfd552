"""Install the built wheel into a separate environment and use it from outside of the source tree."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

NAME = "airflow-provider-onebox"
TRY = f"""
import importlib, pkgutil, warnings
warnings.simplefilter("error")
from importlib.metadata import entry_points, version
import airflow_provider_onebox
assert "site-packages" in airflow_provider_onebox.__file__, airflow_provider_onebox.__file__
assert version("{NAME}") == airflow_provider_onebox.__version__
(found,) = (e for e in entry_points(group="apache_airflow_provider") if e.dist.name == "{NAME}")
assert found.load()()["package-name"] == "{NAME}"
warnings.simplefilter("default")
modules = [m.name for m in pkgutil.walk_packages(airflow_provider_onebox.__path__, "airflow_provider_onebox.")]
for name in modules:
    # The plugin is for people who have pytest.
    if not name.endswith(("__main__", ".sandbox.pytest")):
        importlib.import_module(name)
print(f"{{len(modules)}} modules import; version {{airflow_provider_onebox.__version__}}")
"""


def run(*command: str | Path, **options: object) -> str:
    """Run a command and return what it prints; its errors end this program."""
    done = subprocess.run(  # type: ignore[call-overload]
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, **options
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]} ended with {done.returncode}:\n{done.stdout}")
    return str(done.stdout)


def check_contents(wheel: Path, sdist: Path) -> None:
    """Check the contents of the archives."""
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("airflow_provider_onebox/py.typed", "licenses/LICENSE", "entry_points.txt"):
        if not any(name.endswith(wanted) for name in names):
            sys.exit(f"{wheel.name} has no {wanted}")
    tops = {name.split("/")[0] for name in names}
    if {top for top in tops if not top.endswith(".dist-info")} != {"airflow_provider_onebox"}:
        sys.exit(f"{wheel.name} holds more than the package: {', '.join(sorted(tops))}")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in ("README.md", "CHANGELOG.md", "LICENSE", "tests/conftest.py", "example_dags/example_onebox_token.py"):
        if wanted not in inside:
            sys.exit(f"{sdist.name} has no {wanted}")


def check_installed(python: Path, folder: Path) -> None:
    """Use what is installed: modules, Airflow's view of the provider, and the sandbox."""
    env = {"AIRFLOW_HOME": str(folder / "airflow"), "PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(folder)}
    sys.stdout.write(run(python, "-c", TRY, cwd=folder, env=env))
    for command in ("list", "hooks"):
        listed = run(python, "-m", "airflow", "providers", command, cwd=folder, env=env)
        ours = [line for line in listed.splitlines() if "onebox" in line.lower()]
        if len(ours) != 1 or "warn" in listed.lower():
            sys.exit(f"airflow providers {command} printed:\n{listed}")
        sys.stdout.write(f"airflow providers {command}: {' '.join(ours[0].split())}\n")
    sandbox = [str(python), "-m", "airflow_provider_onebox.sandbox"]
    with subprocess.Popen(sandbox, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline() if process.stdout else ""
        process.terminate()
    if not url.startswith("http://127.0.0.1:") or process.returncode:
        sys.exit(f"the sandbox printed {url!r} and ended with {process.returncode}")
    sys.stdout.write("the sandbox starts and ends\n")


def main(dist: Path, constraints: Path) -> None:
    """Try the one wheel in a folder."""
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory(prefix="onebox-wheel-") as folder:
        python = Path(folder).resolve() / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", "--without-pip", python.parent.parent)
        uv = Path(sys.executable).with_name("uv")
        run(uv, "pip", "install", "--python", python, f"{wheel.resolve()}[sandbox]", "-c", constraints)
        check_installed(python, Path(folder).resolve())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
