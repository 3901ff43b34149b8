"""What a user installs: the wheel, built from the checkout and used away from it."""

from __future__ import annotations

import configparser
import email
import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import gecko_mlc
from gecko_mlc.cli import main

CHECKOUT = Path(gecko_mlc.__file__).parent.parent
PACKAGES = {"gecko_mlc", "relax_model", "tir_kernels"}
LIBRARIES = ("gecko_mlc", "gecko_mlc_vulkan")
VERBS = ("convert-weight", "gen-config", "compile", "generate", "chat", "validate", "bench")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys; from scikit_build_core.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=CHECKOUT, check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site-packages of an environment that has the wheel's files, and its dependencies from
    the running environment. Directories named in a .pth file are not searched for further .pth
    files, so an editable install of the checkout stays out."""
    prefix = tmp_path_factory.mktemp("installed")
    venv.create(prefix)
    (site,) = prefix.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return site


def run_installed(site: Path, code: str) -> str:
    """Standard output of a Python program in that environment."""
    python = site.parents[2] / "bin" / "python"
    done = subprocess.run(
        [python, "-I", "-c", code], cwd=site, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_name_version_and_script(wheel: Path, site: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_")
    assert wheel.name == f"gecko_mlc-{gecko_mlc.__version__}-py3-none-{platform}.whl"
    (info,) = site.glob("gecko_mlc-*.dist-info")
    metadata = email.message_from_string((info / "METADATA").read_text(encoding="utf-8"))
    assert (metadata["Name"], metadata["Version"]) == ("gecko-mlc", gecko_mlc.__version__)
    scripts = configparser.ConfigParser()
    scripts.read(info / "entry_points.txt", encoding="utf-8")
    assert dict(scripts["console_scripts"]) == {"gecko-mlc": "gecko_mlc.cli:main"}
    assert (info / "licenses" / "LICENSE").is_file()


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == PACKAGES
    assert {name for name in names if name.endswith(".py")} == {
        path.relative_to(CHECKOUT).as_posix()
        for package in PACKAGES
        for path in (CHECKOUT / package).rglob("*.py")
    }
    data = {name for name in names if not name.endswith(".py")}
    presets = {f"gecko_mlc/presets/{name}.json" for name in ("tiny", "small", "7b")}
    libraries = {f"gecko_mlc/lib/lib{name}.so" for name in LIBRARIES}
    assert data == {"gecko_mlc/targets.toml", *libraries, *presets}


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_installed_package_has_its_native_libraries(site: Path, name: str) -> None:
    shown = run_installed(
        site,
        f"import tvm; from gecko_mlc.runtime import native; native.load({name!r})\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'gecko_mlc' in line})",
    )
    assert shown.split() == [str(site / "gecko_mlc" / "lib" / f"lib{name}.so")]


def test_an_installed_package_has_its_presets(site: Path) -> None:
    shown = run_installed(
        site,
        "import json; from importlib import resources; import gecko_mlc.config as config\n"
        "folder = resources.files('gecko_mlc')\n"
        "presets = {n: config.GeckoConfig.preset(n).num_layers for n in ('tiny', 'small', '7b')}\n"
        "targets = (folder / 'targets.toml').read_text(encoding='utf-8')\n"
        "print(json.dumps([config.__file__, presets, targets]))",
    )
    file, presets, targets = json.loads(shown)
    assert Path(file) == site / "gecko_mlc" / "config.py"
    assert presets == {"tiny": 2, "small": 8, "7b": 32}
    assert targets == (CHECKOUT / "build" / "targets.toml").read_text(encoding="utf-8")


def test_help_lists_the_verbs_without_importing_tvm_or_torch(site: Path) -> None:
    shown = run_installed(
        site,
        "import sys; sys.argv = ['gecko-mlc', '--help']\n"
        "from gecko_mlc.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('imported:', sorted({'torch', 'tvm', 'tvm_ffi'} & set(sys.modules)))",
    )
    for verb in VERBS:
        assert verb in shown
    assert "imported: []" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gecko-mlc", verb, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert f"gecko-mlc {verb}" in capsys.readouterr().out
