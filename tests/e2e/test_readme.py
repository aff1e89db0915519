"""The commands of the README and of docs/certificates.rst, run as they are written there.

Those of the README are typed at several terminals in a network of their own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import scistream
from support.requirements import missing, needs

ROOT = Path(scistream.__file__).parents[1]
README = ROOT / "README.rst"
CERTIFICATES = ROOT / "docs" / "certificates.rst"
LIMIT = 180.0
DRIVER = """
ip link set lo up
until_there() { for _ in $(seq 600); do eval "$1" 2>/dev/null && return; sleep 0.1; done; echo "no $1"; exit 1; }
bash -e terminal1 >terminal1.log 2>&1 &
until_there '(exec 3<>/dev/tcp/127.0.0.1/5000)'
until_there '(exec 3<>/dev/tcp/127.0.0.1/5001)'
bash -e terminal2 >terminal2.log 2>&1 & request=$!
until_there '[ "$(grep -c ^export terminal2.log)" = 2 ]'
bash -e terminal3 >terminal3.log 2>&1 || { echo "terminal 3 ended with $?"; exit 1; }
wait $request || { echo "the request ended with $?"; exit 1; }
uid=$(sed -n 's/^uid: //p' terminal2.log)
sed -i "s/6857/${uid%${uid#????}}/" after
bash -e after >after.log 2>&1 || { echo "what comes after ended with $?"; exit 1; }
"""


def commands(text: str) -> str:
    """Return the lines that a user types: those with a prompt, and the files that they write."""
    typed: list[str] = []
    in_file = False
    for line in re.findall(r"^    (.*)$", text, re.MULTILINE):
        if in_file or line.startswith("$ "):
            typed.append(line.removeprefix("$ "))
            in_file = line != "END" if in_file else line.endswith("<<END")
    return "\n".join(typed) + "\n"


def terminals() -> dict[str, str]:
    """Return what is typed at each terminal of the section about a stream of one's own."""
    _, section = README.read_text().split("\nA stream of your own, in three terminals\n")
    section, _ = section.split("\nDocumentation\n")
    _, first, second, third = re.split(r"\*\*Terminal \d\*\*", section)
    third, after = third.split("\nThe stream stays up without")
    pasted = re.sub(
        r"^export SCISTREAM_JOIN='.*(prod|cons).*'$",
        r"""eval "$(grep '^export .*/\1?' terminal2.log)" """,
        commands(third),
        flags=re.MULTILINE,
    )
    return {"terminal1": commands(first), "terminal2": commands(second), "terminal3": pasted, "after": commands(after)}


def test_the_commands_of_the_readme_do_what_it_says(linux: None, tmp_path: Path) -> None:
    needs("bash", "unshare", "ip", "iperf3", "sed")
    network = ["unshare", "--map-root-user", "--net"]
    if subprocess.run(
        [*network, "ip", "link", "set", "lo", "up"], check=False, capture_output=True, timeout=60
    ).returncode:
        missing("this machine gives an ordinary user no network of their own")
    for name, text in terminals().items():
        assert text.strip(), f"the README has commands for {name}"
        (tmp_path / name).write_text(text)
    with subprocess.Popen(
        [*network, "bash", "-c", DRIVER],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as driver:
        try:
            status = driver.wait(LIMIT)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGTERM)
        assert driver.stdout is not None
        logs = {file.stem: file.read_text() for file in tmp_path.glob("*.log")}
        assert status == 0, f"{driver.stdout.read()}\n{logs}"
    assert len(re.findall(r"^127\.0\.0\.1:\d+ --> 127\.0\.0\.1:\d+$", logs["terminal2"], re.MULTILINE)) == 2
    assert "*** Process time: " in logs["terminal2"]
    assert "Reverse mode" in logs["terminal3"]
    assert re.search(r" [1-9][\d.]* [MG]Bytes .* receiver", logs["terminal3"]), "bytes came to the consumer"
    uid = re.search(r"^uid: (.*)$", logs["terminal2"], re.MULTILINE)
    assert uid is not None
    assert "Streaming" in logs["after"]
    assert f"released {uid[1]}" in logs["after"]


def section(page: str, title: str) -> str:
    """Return the text under a title of a page, up to the next title."""
    _, rest = page.split(f"\n{title}\n---")
    return re.split(r"\n[^\n]+\n---", rest)[0]


def test_the_commands_of_the_page_about_certificates_do_what_it_says(linux: None, tmp_path: Path) -> None:
    needs("bash")
    page = CERTIFICATES.read_text()
    request, sign, install = re.findall(r"^    (?:ada|facility)\$ +(.*)$", section(page, "Enrolment"), re.MULTILINE)
    send_back = "cp pki/ada@lab.example.pem ."
    [renew] = re.findall(r"``(scistream pki renew DIR NAME)``", section(page, "Rotation"))
    [revoke] = re.findall(r"^    facility\$ +(scistream pki revoke .*)$", section(page, "Revocation"), re.MULTILINE)
    named = [renew.replace("DIR", "pki").replace("NAME", "localhost"), revoke]
    first = 'scistream pki init pki --facility "My Lab"\nscistream pki issue pki server localhost'
    shown = "scistream pki show ~/.config/scistream/ada@lab.example.pem"
    ran = subprocess.run(
        ["bash", "-e", "-c", "\n".join([first, request, sign, send_back, install, shown, *named])],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])},
        input="y\ny\n",  # both have compared what they were told by another way
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "ada@lab.example" in ran.stdout
    (key,) = (tmp_path / ".config" / "scistream").glob("*.key")
    assert key.stat().st_mode & 0o077 == 0
    assert (tmp_path / "pki" / "crl.pem").exists()
