"""The commands of the README, of docs/certificates.rst and of docs/howto/backup.rst, run as they are written there.

Those of the README are typed at several terminals in a network of their own, from the wheel, by an unprivileged user.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import scistream
from support.lone_network import LIMIT, own_folder, run_alone
from support.requirements import needs
from support.typed_commands import typed

ROOT = Path(scistream.__file__).parents[1]
README = ROOT / "README.rst"
CERTIFICATES = ROOT / "docs" / "certificates.rst"
BACKUP = ROOT / "docs" / "howto" / "backup.rst"
DRIVER = """
ip link set lo up
until_there() { for _ in $(seq 600); do eval "$1" 2>/dev/null && return; sleep 0.1; done; echo "no $1"; exit 1; }
$PLAIN bash -e terminal1 >terminal1.log 2>&1 &
until_there '(exec 3<>/dev/tcp/127.0.0.1/5000)'
until_there '(exec 3<>/dev/tcp/127.0.0.1/5001)'
$PLAIN bash -e terminal2 >terminal2.log 2>&1 & request=$!
until_there '[ "$(grep -c ^export terminal2.log)" = 2 ]'
$PLAIN bash -e terminal3 >terminal3.log 2>&1 || { echo "terminal 3 ended with $?"; exit 1; }
wait $request || { echo "the request ended with $?"; exit 1; }
uid=$(sed -n 's/^uid: //p' terminal2.log)
$PLAIN bash -e backup >backup.log 2>&1 || { echo "the backup ended with $?"; exit 1; }
sed -i "s/6857/${uid%${uid#????}}/" after
$PLAIN bash -e after >after.log 2>&1 || { echo "what comes after ended with $?"; exit 1; }
"""


def commands(text: str) -> str:
    """Return what a user types."""
    return "".join(f"{command.text}\n" for command in typed(text))


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


def test_the_commands_of_the_readme_do_what_it_says(linux: None, installed: Path) -> None:
    needs("iperf3", "sed")
    with own_folder() as folder:
        for name, text in terminals().items():
            assert text.strip(), f"the README has commands for {name}"
            (folder / name).write_text(text)
        (folder / "backup").write_text(commands(section(BACKUP.read_text(), "Back up")))
        run_alone(folder, DRIVER, installed)
        logs = {file.stem: file.read_text() for file in folder.glob("*.log")}
    assert len(re.findall(r"^127\.0\.0\.1:\d+ --> 127\.0\.0\.1:\d+$", logs["terminal2"], re.MULTILINE)) == 2
    assert "*** Process time: " in logs["terminal2"]
    assert len(re.findall(r"^ok ", logs["terminal2"], re.MULTILINE)) > 5, "the probe has checked the path"
    assert "FAILED" not in logs["terminal2"]
    assert "Reverse mode" in logs["terminal3"]
    assert re.search(r" [1-9][\d.]* [MG]Bytes .* receiver", logs["terminal3"]), "bytes came to the consumer"
    uid = re.search(r"^uid: (.*)$", logs["terminal2"], re.MULTILINE)
    assert uid is not None
    assert uid[1] in logs["backup"], "the copy of the store knows the stream"
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
