"""The Debian package, `make install` and the image of a container: what they install, and that it works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.requirements import needs, needs_root
from support.wheel import REPOSITORY


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: int = 900) -> str:
    """Return a program's standard output."""
    done = subprocess.run(
        command, env=env, cwd=cwd, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what packages are made of, and the wheel in dist/."""
    source = tmp_path_factory.mktemp("package") / "source"
    for folder in ("conf", "packaging"):
        shutil.copytree(REPOSITORY / folder, source / folder)
    for file in ("constraints.txt", "LICENSE"):
        shutil.copy(REPOSITORY / file, source)
    (wheel,) = installed.parent.parent.glob("*.whl")
    (source / "dist").mkdir()
    shutil.copy(wheel, source / "dist")
    return source


def wheel_of(source: Path) -> Path:
    (wheel,) = (source / "dist").glob("scistream-*.whl")
    return wheel


def test_the_package_has_units_users_settings_and_commands_at_their_paths(source: Path, tmp_path: Path) -> None:
    """Its libraries are left out here, and those of the tests are taken in their place."""
    needs("dpkg-deb")
    major, minor = sys.version_info[:2]
    env = {
        **os.environ,
        "PYTHON": f"{sys.base_prefix}/bin/python{major}.{minor}",  # the environment of the tests may be in /tmp
        "PIP": f"{sys.executable} -m pip",
        "PIP_NO_DEPS": "1",
        "PYTHONPATH": sysconfig.get_path("purelib"),
    }
    package = Path(run(source / "packaging" / "deb", wheel_of(source), tmp_path, env=env).strip())
    control = run("dpkg-deb", "--field", package)
    assert f"Depends: python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1})" in control
    assert "procps" in control, "ExecReload= runs its kill, which a small Debian does not have"
    root = tmp_path / "root"
    run("dpkg-deb", "--raw-extract", package, root)
    for kind in ("s2cs", "s2ds"):
        unit = (root / "lib/systemd/system" / f"{kind}.service").read_text()
        command = f"/opt/scistream/bin/twistd -n --pidfile= {kind} --config /etc/scistream/{kind}.toml"
        assert f"ExecStart={command}\n" in unit
        assert (root / "lib/systemd/system" / f"{kind}.socket").is_file()
    for name in ("sysusers.d", "tmpfiles.d"):
        assert (root / "usr/lib" / name / "scistream.conf").is_file()
    examples = root / "usr/share/doc/scistream/examples"
    assert 'state = "/var/lib/scistream/s2cs.sqlite"' in (examples / "s2cs.toml").read_text()
    assert {file.name for file in examples.iterdir()} >= {"s2ds.toml", "s2uc.toml", "policy.toml", "90-scistream.conf"}
    rotation = (root / "etc/logrotate.d/scistream").read_text()
    assert re.search(r'^audit = "(.*)"$', (examples / "s2cs.toml").read_text(), re.M)[1] in rotation  # type: ignore[index]
    for program in ("s2uc", "appctrl", "scistream"):
        assert os.readlink(root / "usr/bin" / program) == f"/opt/scistream/bin/{program}"
        script = (root / "opt/scistream/bin" / program).read_bytes()
        assert script.startswith((b"#!/opt/scistream/bin/python", b"#!/bin/sh\n'''exec' /opt/scistream/bin/python"))
    modules = {str(file.relative_to(REPOSITORY)) for file in (REPOSITORY / "scistream").rglob("*.py")}
    (packages,) = root.glob("opt/scistream/lib/python*/site-packages")
    assert modules <= {str(file.relative_to(packages)) for file in packages.rglob("*.py")}
    for file in packages.glob("scistream/*.py"):
        assert (file.parent / "__pycache__" / f"{file.stem}.{sys.implementation.cache_tag}.pyc").is_file()
    built = re.compile(rb"/tmp/tmp\.\w+|/scistream\.new|" + re.escape(str(tmp_path).encode()))
    assert [file for file in root.rglob("*") if file.is_file() and built.search(file.read_bytes())] == []


def test_a_prefix_that_is_something_else_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir()
    (tmp_path / "prefix" / "precious").touch()
    for prefix, why in ((str(tmp_path / "prefix"), "is not a virtual environment"), ("opt", "is not an absolute path")):
        env = {**os.environ, "PREFIX": prefix}
        command = [source / "packaging" / "install", wheel_of(source)]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    assert (tmp_path / "prefix" / "precious").exists()


# -- in a fresh Debian

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
"""The authorities that this machine trusts, which may have one for its way to the index of packages."""


def archive() -> str:
    """Return the address of the archive from which this machine gets its packages, as debootstrap takes it."""
    for file in sorted([Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]):
        if file.exists():
            found = re.search(r"^(?:URIs:|deb(?: \[.*?\])?) +(https?://\S+/debian/?)(?: |$)", file.read_text(), re.M)
            if found:
                return found[1]
    pytest.skip("this machine gets its packages from no Debian archive")


def inside(root: Path, command: str, *, user: str = "", timeout: int = 900) -> str:
    """Run a shell command in the new root, with a /proc of its own, and the network of this one."""
    become = f"exec setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs" if user else "exec"
    script = (
        'mount -t proc proc "$1/proc"; mount --rbind /dev "$1/dev"; '
        f'exec chroot "$1" /bin/sh -c "{become} /bin/sh -euc \\"\\$0\\"" "$2"'
    )
    copy = f"/etc/{AUTHORITIES.name}"
    env = {
        name: copy if value == str(AUTHORITIES) else value  # programs name them in different variables
        for name, value in os.environ.items()
        if "PYTHON" not in name and name != "CI"
    }
    env |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
    env |= {"HOME": "/tmp", "LC_ALL": "C.UTF-8"}
    return run(
        "unshare", "--mount", "--pid", "--fork", "sh", "-euc", script, "sh", root, command, env=env, timeout=timeout
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a Debian 12 as debootstrap makes it."""
    needs_root("debootstrap needs root")
    needs("debootstrap", "unshare")
    root = tmp_path_factory.mktemp("debian") / "root"
    run("debootstrap", "--variant=minbase", "bookworm", root, archive())
    for name in ("etc/resolv.conf", "etc/hosts"):
        shutil.copy(Path("/", name), root / name)
    if AUTHORITIES.exists():
        shutil.copy(AUTHORITIES, root / "etc" / AUTHORITIES.name)
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def fresh(base: Path, tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a fresh Debian 12."""
    root = tmp_path / "root"
    run("cp", "--archive", base, root)
    yield root
    shutil.rmtree(root)


DEMO = "cd /tmp; scistream demo --json --seconds 2"


def check_demo(line: str) -> None:
    """Check the result of a demonstration, which exits with 0 if each frame has arrived once and unchanged."""
    result = json.loads(line.splitlines()[-1])
    assert result["frames"] > 0
    assert result["frames_lost"] == result["frames_repeated"] == result["frames_corrupt"] == 0


def files(root: Path) -> set[str]:
    """Return the files that could be left behind by a package."""
    left_out = ("proc/", "dev/", "sys/", "tmp/", "var/lib/dpkg/", "var/cache/", "var/log/", "var/lib/apt/", "run/")
    names = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}
    return {name for name in names if not name.startswith(left_out)}


@pytest.mark.long
def test_the_package_installs_streams_and_is_removed_cleanly(source: Path, fresh: Path) -> None:
    env = {**os.environ, "PYTHON": "/usr/bin/python3", "PIP": f"{sys.executable} -m pip"}
    package = Path(run(source / "packaging" / "deb", wheel_of(source), fresh / "tmp", env=env).strip())
    inside(fresh, "apt-get -qq update; apt-get -qq install -y --no-install-recommends python3 adduser procps")
    before = files(fresh)
    inside(fresh, f"apt-get -qq install -y --no-install-recommends /tmp/{package.name}")
    assert inside(fresh, "id -un scistream").strip() == "scistream"
    assert inside(fresh, "stat -c %U:%G:%a /etc/scistream").strip() == "root:scistream:750"
    for kind in ("s2cs", "s2ds"):
        link = fresh / "etc/systemd/system/multi-user.target.wants" / f"{kind}.service"
        assert os.readlink(link) == f"/lib/systemd/system/{kind}.service", "enabled"
    check_demo(inside(fresh, DEMO, user="65534"))
    inside(fresh, "dpkg --audit; dpkg --verify scistream")
    inside(fresh, "apt-get -qq purge -y scistream")
    assert files(fresh) - before <= {"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-"}
    assert "scistream" not in (fresh / "etc/passwd").read_text()
    assert (fresh / "opt").is_dir()


@pytest.mark.long
def test_the_steps_of_the_container_file_make_an_image_that_streams(source: Path, fresh: Path) -> None:
    """No builder is needed: RUN and COPY are done in a fresh Debian."""
    lines = (source / "conf/container/Containerfile").read_text().splitlines()
    path = ""
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "RUN":
            inside(fresh, rest)
        elif word == "COPY":
            *names, target = rest.split()
            for name in names:
                for file in source.glob(name):
                    place = fresh / target[1:] / file.name if target.endswith("/") else fresh / target[1:]
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, place)
        elif word == "ENV":
            path = rest
    assert path.startswith("PATH=/opt/scistream/bin:")
    version = inside(fresh, f"{path}; scistream-entrypoint scistream --version", user="990")
    assert re.match(r"scistream, version \d", version)
    check_demo(inside(fresh, f"{path}; cd /tmp; scistream-entrypoint scistream demo --json --seconds 2", user="990"))
