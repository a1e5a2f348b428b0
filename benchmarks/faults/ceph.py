"""A Ceph cluster of one node with an S3 gateway: a server that people run in production.

Needs root and Debian's packages ``ceph-mon``, ``ceph-osd``, ``ceph-common`` and ``radosgw``. The
objects lie in memory and are gone with the server.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.faults.prefect_site import wait_until

NEEDED = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
MONITOR = 33300

CONFIG = """
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = v2:{address}:{monitor}
public_addr = {address}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_supported = none
ms_mon_client_mode = crc
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
mon_allow_pool_size_one = true
mon_data = {folder}/mon
mon_data_avail_crit = 1
osd_data = {folder}/osd
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
[client.rgw]
rgw_frontends = beast endpoint={address}:{port}
"""


def missing_programs() -> list[str]:
    """The programs of Ceph that this machine lacks."""
    return [name for name in NEEDED if shutil.which(name) is None]


@contextlib.contextmanager
def ceph_server(
    folder: Path, port: int, key: str, secret: str, address: str = "127.0.0.1"
) -> Iterator[None]:
    """Serve S3 at ``address:port`` for one user; the server ends with the block.

    Args:
        folder: a folder for configuration and logs. It is created.
        port: the port of the S3 gateway.
        key: the access key of the user.
        secret: the secret key of the user.
        address: an IPv4 address of this machine.
    """
    for name in ("mon", "osd"):
        (folder / name).mkdir(parents=True)
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    facts = {"address": address, "monitor": MONITOR, "port": port}
    (folder / "ceph.conf").write_text(CONFIG.format(fsid=fsid, folder=folder, **facts))
    run = _Commands(folder)
    map_file = folder / "monmap"
    run(
        "monmaptool",
        "--create",
        "--addv",
        "a",
        f"[v2:{address}:{MONITOR}]",
        "--fsid",
        fsid,
        map_file,
    )
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_file)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.daemon("ceph-mon", "-i", "a"))
        run("ceph", "osd", "new", osd)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        run("ceph", "osd", "crush", "add", "0", "1.0", "host=one", "root=default")
        stack.enter_context(run.daemon("ceph-osd", "-i", "0", "--osd-uuid", osd))
        wait_until(lambda: " 1 up" in run("ceph", "osd", "stat"), 60)
        stack.enter_context(run.daemon("radosgw", "-n", "client.rgw"))
        wait_until(lambda: _answers(address, port), 120)
        user = ("user", "create", "--uid=benchmark", "--display-name=benchmark")
        run("radosgw-admin", "-n", "client.rgw", *user, f"--access-key={key}", f"--secret={secret}")
        yield


class _Commands:
    """Run Ceph's programs with the configuration in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = ("-c", str(folder / "ceph.conf"))

    def __call__(self, program: str, *arguments: str | Path) -> str:
        config: Sequence[str] = () if program == "monmaptool" else self._config
        command = [program, *config, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
        return done.stdout

    @contextlib.contextmanager
    def daemon(self, program: str, *arguments: str) -> Iterator[None]:
        """A daemon in the foreground of a process of its own."""
        with (self._folder / f"{program}.out").open("wb") as log:
            process = subprocess.Popen(
                [program, *self._config, *arguments, "-f"], stdout=log, stderr=log
            )
        time.sleep(1)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def _answers(address: str, port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"http://{address}:{port}", timeout=5).status)
    return False
