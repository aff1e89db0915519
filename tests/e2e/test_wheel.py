"""The package as users get it: built as a wheel, installed into a new environment, used from another folder."""

from __future__ import annotations

from pathlib import Path

from harness import World

from support.applications import accept, address_of, listen, noise, receive, sha256
from support.wheel import REPOSITORY, run


def test_twistd_lists_both_servers_wherever_it_is_run(installed: Path, tmp_path: Path) -> None:
    listed = [line.split() for line in run(installed / "twistd", "--help", cwd=tmp_path).splitlines()]
    names = {words[0] for words in listed if words}
    assert {"s2cs", "s2ds"} <= names
    for name in ("s2cs", "s2ds"):
        assert "--config" in run(installed / "twistd", name, "--help", cwd=tmp_path)


def test_every_command_is_there_and_knows_its_version(installed: Path, tmp_path: Path) -> None:
    version = run(installed / "python", "-c", "import scistream; print(scistream.__version__)", cwd=tmp_path).strip()
    for name in ("s2uc", "appctrl", "scistream"):
        assert run(installed / name, "--version", cwd=tmp_path) == f"{name}, version {version}\n"


def test_a_stream_between_two_facilities_runs_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import scistream; print(scistream.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    frames = noise(1_000_000)
    with (
        World(tmp_path, programs=installed) as world,
        listen() as detector,
        world.stream([address_of(detector)], rate="1Gbit") as stream,
        stream.connect() as analysis,
    ):
        with accept(detector) as camera:
            camera.sendall(frames)
        assert sha256(receive(analysis)) == sha256(frames)


def test_the_wheel_brings_the_examples_of_configuration_files_and_units(installed: Path, tmp_path: Path) -> None:
    run(installed / "scistream", "examples", tmp_path / "examples", cwd=tmp_path)
    conf = REPOSITORY / "conf"
    files = [file.relative_to(conf) for file in conf.rglob("*") if file.is_file()]
    assert len(files) > 8
    for name in files:
        assert (tmp_path / "examples" / name).read_bytes() == (conf / name).read_bytes()


def test_the_wheel_brings_every_module_types_the_licence_and_no_tests(installed: Path) -> None:
    (packages,) = (installed.parent / "lib").glob("python*/site-packages")
    assert (packages / "scistream" / "py.typed").exists()
    (described,) = packages.glob("scistream-*.dist-info")
    files = [line.partition(",")[0] for line in (described / "RECORD").read_text().splitlines()]
    assert any(name.endswith("/LICENSE") for name in files)
    modules = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "scistream").rglob("*.py")}
    assert modules | {"twisted/plugins/scistream_services.py"} <= set(files)
    assert not [name for name in files if "tests/" in name or name == "twisted/plugins/__init__.py"]
