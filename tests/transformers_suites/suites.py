"""The common tests of `transformers`, from its source distribution on the package index; nothing of them is in this repository.

To add a suite: `test_suite_<name>.py` here, with `from transformers_tests.test_<name>_common import <Mixin>` below
`pytestmark = pytest.mark.suites`; tests that cannot apply go into `cannot_apply.py`, results into `docs/transformers_suites.md`.

The distribution of the installed version is downloaded once, with pip, into the virtual environment.
"""

import subprocess
import sys
import tarfile
import tempfile
import types
from pathlib import Path

import transformers

VERSION = transformers.__version__
PACKAGE = "transformers_tests"  # what their folder `tests` is called here
CACHE = Path(sys.prefix) / "share" / PACKAGE / VERSION

# Modules of their repository that the tests import, but that the source distribution lacks. Exports and generation are no
# business of this model: their mixins have no tests here.
STAND_INS = {
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": {}},
}


def make_importable() -> None:
    """Make `import transformers_tests.test_processing_common` and its like work.

    Raises:
        OSError: The source distribution cannot be had.
    """
    if not CACHE.is_dir():
        _download(CACHE)
    (CACHE / PACKAGE / "__init__.py").touch()  # one of the tests reads its own
    sys.path.append(str(CACHE))
    for name, contents in STAND_INS.items():
        sys.modules.setdefault(name, types.ModuleType(name)).__dict__.update(contents)


def _download(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        requirement = f"transformers=={VERSION}"
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers")
        done = subprocess.run([*pip, "--dest", temporary, requirement], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"pip cannot download the source distribution of {requirement}: {_last_line(done.stderr)}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        unpacked = Path(tempfile.mkdtemp(dir=folder.parent))
        with tarfile.open(Path(temporary) / f"transformers-{VERSION}.tar.gz") as archive:
            inside = f"transformers-{VERSION}/tests/"
            for member in archive.getmembers():
                if member.isfile() and member.name.startswith(inside) and member.name.endswith(".py"):
                    member.name = f"{PACKAGE}/{member.name.removeprefix(inside)}"
                    archive.extract(member, unpacked, filter="data")
        unpacked.rename(folder)  # in one step: a download that broke off leaves no half of it


def _last_line(text: str) -> str:
    errors = [line for line in text.splitlines() if line.startswith("ERROR")]
    return (errors or text.splitlines() or ["no message"])[-1]
