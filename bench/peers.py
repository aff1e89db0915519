"""The peers and their configurations, each tuned for one machine.

They never resume TLS sessions: every connection makes a full handshake with certificates of both sides. AES-128-GCM is
preferred, as in SciStream. Settings that were tried and gained nothing are left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scistream.pki.authority import Issued

HOST = "127.0.0.1"
SUITE = "TLS_AES_128_GCM_SHA256"
FAR_NAME = "far.bench.example"
NGINX_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

ADMINISTRATORS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Directories of programs that may not be in the PATH of an ordinary user."""

PACKAGES = {
    "haproxy": "haproxy",
    "nginx": "nginx-light libnginx-mod-stream",
    "stunnel": "stunnel4",
    "socat": "socat",
    "iperf3": "iperf3",
    "ss": "iproute2",
    "ip": "iproute2",
}
"""The Debian packages of each program."""

VERSIONS = {
    "haproxy": ("-v",),
    "nginx": ("-v",),
    "stunnel": ("-version",),
    "socat": ("-V",),
    "iperf3": ("--version",),
    "ss": ("-V",),
    "ip": ("-V",),
}


@dataclass(frozen=True)
class Endpoints:
    """The ports of a path: where it is entered, and where its application listens.

    :param middle: where the second of two hops listens; 0 for one hop.
    :param hosts: the addresses of the three, in this order.
    """

    enter: int
    target: int
    middle: int = 0
    hosts: tuple[str, str, str] = (HOST, HOST, HOST)

    @property
    def entrance(self) -> str:
        """The address and port where the path is entered."""
        return f"{self.hosts[0]}:{self.enter}"

    @property
    def application(self) -> str:
        """The address and port of the application."""
        return f"{self.hosts[1]}:{self.target}"

    @property
    def between(self) -> str:
        """The address and port of the second of two hops."""
        return f"{self.hosts[2]}:{self.middle}"


@dataclass(frozen=True)
class Certificates:
    """The certificates of two hops, and their common authority."""

    authority: Path
    near: Issued
    far: Issued


@dataclass(frozen=True)
class Program:
    """A process to start.

    :param files: the files in its folder: names and contents.
    :param arguments: the command line, in which "{folder}" stands for that folder.
    """

    name: str
    files: Mapping[str, str]
    arguments: tuple[str, ...]

    def command(self, folder: Path) -> list[str]:
        """Return the command line, with `folder` filled in."""
        return [word.replace("{folder}", str(folder)) for word in self.arguments]

    def shown(self) -> str:
        """Return the command line and configuration for display, without private keys."""
        texts = [text.rstrip() for text in self.files.values() if "PRIVATE KEY" not in text]
        return "\n".join([f"--- {' '.join(self.arguments)}", *texts])

    def write(self, folder: Path) -> None:
        """Write the files to a new folder that only this user can read, since there may be keys among them."""
        folder.mkdir(mode=0o700)
        for name, content in self.files.items():
            path = folder / name
            path.touch(mode=0o600)
            path.write_text(content.replace("{folder}", str(folder)))


def find(program: str) -> str | None:
    """Return the path of a program, in the PATH or a directory of system programs, or None."""
    names = ("stunnel4", "stunnel") if program == "stunnel" else (program,)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *ADMINISTRATORS])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def missing(programs: Iterable[str]) -> list[str]:
    """Return the packages of the programs that are not installed."""
    lacking = [name for name in programs if find(name) is None or (name == "nginx" and not _nginx_has_streams())]
    return list(dict.fromkeys(package for name in lacking for package in PACKAGES[name].split()))


def version(program: str) -> str:
    """Return the line in which a program prints its version."""
    said = subprocess.run([found(program), *VERSIONS[program]], capture_output=True, text=True, check=False, timeout=60)
    lines = [line.strip() for line in (said.stdout + said.stderr).splitlines()]
    return next((line for line in lines if any(sign.isdigit() for sign in line)), "of unknown version")


def haproxy(endpoints: Endpoints, threads: int | None = None) -> Program:
    """Configure one hop, with splicing, and buffers of 256 KiB for data that is not spliced."""
    route = _LISTEN.format(number=0, listen=endpoints.entrance, to=endpoints.application)
    return _haproxy(
        "haproxy", _HAPROXY.format(threads=threads or _threads(), more="", option="    option splice-auto\n") + route
    )


def haproxy_pair(
    endpoints: Sequence[Endpoints], certificates: Certificates, threads: int | None = None
) -> list[Program]:
    """Configure two hops with TLS between them."""
    head = _HAPROXY.format(threads=threads or _threads(), more=_HAPROXY_TLS, option="")
    tls = f"ssl crt {{folder}}/own.pem ca-file {certificates.authority} verify required"
    near = far = head
    for number, each in enumerate(endpoints):
        middle = f"{each.between} {tls}"
        to = f"{middle} verifyhost {FAR_NAME} no-ssl-reuse"
        near += _LISTEN.format(number=number, listen=each.entrance, to=to)
        far += _LISTEN.format(number=number, listen=middle, to=each.application)
    return [
        _haproxy("haproxy-near", near, {"own.pem": _both(certificates.near)}),
        _haproxy("haproxy-far", far, {"own.pem": _both(certificates.far)}),
    ]


def _threads() -> int:
    """Return the best number of threads: one on two processors, which the applications already keep busy."""
    cores = os.cpu_count() or 1
    return cores if cores > 2 else 1


_LISTEN = """
listen way{number}
    bind {listen}
    server next {to}
"""

_HAPROXY_TLS = f"""    tune.ssl.cachesize 0
    ssl-default-bind-ciphersuites {SUITE}
    ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
    ssl-default-server-ciphersuites {SUITE}
    ssl-default-server-options ssl-min-ver TLSv1.3 no-tls-tickets
"""

_HAPROXY = """global
    maxconn 1000
    nbthread {threads}
    tune.bufsize 262144
{more}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
{option}"""


def _haproxy(name: str, config: str, files: Mapping[str, str] | None = None) -> Program:
    everything = {"haproxy.cfg": config, **(files or {})}
    return Program(name, everything, (found("haproxy"), "-db", "-f", "{folder}/haproxy.cfg"))


def _both(issued: Issued) -> str:
    return issued.certificate.read_text() + issued.key.read_text()


def nginx(endpoints: Endpoints, workers: str = "auto") -> Program:
    """Configure one hop through buffers of 256 KiB."""
    return _nginx("nginx", workers, [(endpoints.entrance, endpoints.application)], "")


def nginx_pair(endpoints: Sequence[Endpoints], certificates: Certificates, workers: str = "auto") -> list[Program]:
    """Configure two hops with TLS between them."""
    near = f"""
    proxy_ssl on;
    proxy_ssl_session_reuse off;
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_conf_command Ciphersuites {SUITE};
    proxy_ssl_certificate {certificates.near.certificate};
    proxy_ssl_certificate_key {certificates.near.key};
    proxy_ssl_trusted_certificate {certificates.authority};
    proxy_ssl_verify on;
    proxy_ssl_name {FAR_NAME};
"""
    far = f"""
    ssl_session_cache off;
    ssl_session_tickets off;
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites {SUITE};
    ssl_certificate {certificates.far.certificate};
    ssl_certificate_key {certificates.far.key};
    ssl_client_certificate {certificates.authority};
    ssl_verify_client on;
"""
    return [
        _nginx("nginx-near", workers, [(each.entrance, each.between) for each in endpoints], near),
        _nginx("nginx-far", workers, [(f"{each.between} ssl", each.application) for each in endpoints], far),
    ]


def _nginx(name: str, workers: str, routes: Iterable[tuple[str, str]], more: str) -> Program:
    servers = "\n".join(f"    server {{ listen {listen} backlog=4096; proxy_pass {to}; }}" for listen, to in routes)
    module = f"load_module {NGINX_MODULE};\n" if NGINX_MODULE.exists() else ""
    config = f"""{module}daemon off;
worker_processes {workers};
pid {{folder}}/nginx.pid;
error_log {{folder}}/error.log;
events {{ worker_connections 1000; }}
stream {{
    access_log off;
    proxy_buffer_size 256k;
    proxy_timeout 1h;
    tcp_nodelay on;
{servers}
{more}}}
"""
    arguments = (found("nginx"), "-c", "{folder}/nginx.conf", "-e", "{folder}/error.log", "-p", "{folder}")
    return Program(name, {"nginx.conf": config}, arguments)


def _nginx_has_streams() -> bool:
    if NGINX_MODULE.exists():
        return True
    said = subprocess.run([found("nginx"), "-V"], capture_output=True, text=True, check=False, timeout=60)
    return "--with-stream " in said.stderr  # built in, not as a module in an unknown place


def stunnel_pair(endpoints: Sequence[Endpoints], certificates: Certificates) -> list[Program]:
    """Configure two hops with TLS between them."""
    near, far = _stunnel(certificates, certificates.near), _stunnel(certificates, certificates.far)
    for number, each in enumerate(endpoints):
        client = f"client = yes\ncheckHost = {FAR_NAME}\n"
        near += f"\n[near{number}]\n{client}accept = {each.entrance}\nconnect = {each.between}\n"
        far += f"\n[far{number}]\naccept = {each.between}\nconnect = {each.application}\n"
    return [
        Program(name, {"stunnel.conf": config}, (found("stunnel"), "{folder}/stunnel.conf"))
        for name, config in (("stunnel-near", near), ("stunnel-far", far))
    ]


def _stunnel(certificates: Certificates, own: Issued) -> str:
    return f"""foreground = yes
pid =
debug = err
sslVersion = TLSv1.3
ciphersuites = {SUITE}
sessionResume = no
options = NO_TICKET
verifyChain = yes
CAfile = {certificates.authority}
cert = {own.certificate}
key = {own.key}
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
"""


def socat(endpoints: Endpoints) -> Program:
    """Configure one hop, with a process for each connection."""
    listen = f"TCP4-LISTEN:{endpoints.enter},bind={endpoints.hosts[0]},fork,reuseaddr,nodelay,backlog=1024"
    return Program("socat", {}, (found("socat"), "-b262144", listen, f"TCP4:{endpoints.application},nodelay"))


def found(program: str) -> str:
    """Return the path of a program.

    :raises FileNotFoundError: if it is not installed.
    """
    found = find(program)
    if found is None:
        raise FileNotFoundError(f"{program} is not installed (package {PACKAGES[program]})")
    return found
