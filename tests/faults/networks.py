# SPDX-License-Identifier: Apache-2.0
"""A network to do harm to: hosts in network namespaces, each on a cable to one switch.

Made with ip, tc and nft inside private.enter(): the namespaces go when the storm ends, whatever way
it ends. A rank lives on a host when its pool says so (HCCOMM_TEST_NETNS, see pool.py).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from pool import Owner, Pool, Rank

SETUP = "mount -t tmpfs tmpfs /run && mkdir /run/netns && hostname storm-without-address"
TOOLS = ("ip", "tc", "nft")
CABLE = "eth0"
_TABLE = "table inet storm"


def refusal(setup_works: Callable[[], object]) -> str:
    """Return why there can be no network here, or nothing."""
    lacking = [each for each in TOOLS if shutil.which(each) is None]
    if lacking:
        return f"no {' nor '.join(lacking)} here"
    return "" if setup_works() else "network namespaces are not permitted here"


class Network(Owner):
    """Hosts h0, h1, ... with ranks; host k has the addresses 10.77.1.(k+1) and fd77::(k+1).

    ``control`` is TCP's congestion control there; "" is the system's.

    Owns:   the namespaces, the cables, and the ranks on the hosts.
    Thread: one.
    Fails:  RuntimeError, with what the tool said, where the system refuses.
    """

    def __init__(
        self, hosts: int, *, families: Sequence[str] = ("4", "6"), control: str = "", **environ: str
    ) -> None:
        self.hosts = [f"h{number}" for number in range(hosts)]
        self._pools: list[Pool] = []
        self._ports = 29600
        run("ip", "link", "add", "switch", "type", "bridge")
        run("ip", "link", "set", "switch", "up")
        try:
            for number, host in enumerate(self.hosts):
                self._add(number, host, families)
                if control:
                    file = "/proc/sys/net/ipv4/tcp_congestion_control"
                    inside(host, "sh", "-c", f"echo {control} > {file}")
                self._pools.append(Pool(HCCOMM_HOST=host, HCCOMM_TEST_NETNS=host, **environ))
        except BaseException:
            self.close()
            raise

    def _add(self, number: int, host: str, families: Sequence[str]) -> None:
        run("ip", "netns", "add", host)
        run("ip", "link", "add", f"port{number}", "type", "veth",
            "peer", "name", CABLE, "netns", host)  # fmt: skip
        run("ip", "link", "set", f"port{number}", "master", "switch", "up")
        off = "0" if "6" in families or "link" in families else "1"
        inside(host, "sh", "-c", f"echo {off} > /proc/sys/net/ipv6/conf/all/disable_ipv6")
        self.ip(host, "link", "set", "lo", "up")
        self.ip(host, "link", "set", CABLE, "addrgenmode", "none")
        self.ip(host, "link", "set", CABLE, "up")
        if "4" in families:
            self.ip(host, "addr", "add", f"10.77.1.{number + 1}/24", "dev", CABLE)
        else:
            self.ip(host, "addr", "flush", "dev", "lo", "scope", "host")
            self.ip(host, "addr", "add", "::1/128", "dev", "lo")
        if "6" in families:
            self.ip(host, "addr", "add", f"fd77::{number + 1}/64", "dev", CABLE, "nodad")
        if "link" in families:
            self.ip(host, "addr", "add", f"fe80::{number + 1}/64", "dev", CABLE, "nodad")

    def ip(self, host: str, *words: str) -> None:
        """Run ip for a host."""
        run("ip", "-n", host, *words)

    def rules(self, host: str, text: str) -> None:
        """Replace the host's packet filter: lines "input|output: statement" on the cable."""
        chains = ""
        for hook, port in (("input", "iifname"), ("output", "oifname")):
            lines = [each.partition(":") for each in text.splitlines() if each.strip()]
            body = "".join(f"{port} {CABLE} {what}\n" for on, _, what in lines if on == hook)
            chains += f"chain {hook} {{ type filter hook {hook} priority 0;\n{body}}}\n"
        script = f"{_TABLE}\ndelete {_TABLE}\n{_TABLE} {{\n{chains}}}\n"
        inside(host, "nft", "-f", "-", text=script)

    def rate(self, host: str, mbit: int) -> None:
        """Cut what the host sends to ``mbit`` a second."""
        run("tc", "-n", host, "qdisc", "add", "dev", CABLE, "root", "tbf", "rate",
            f"{mbit}mbit", "burst", "64kb", "latency", "50ms")  # fmt: skip

    @property
    def folder(self) -> Path:
        """A folder that all hosts see."""
        return self._pools[0].folder

    def take(self, ranks: int) -> list[Rank]:
        """Return so many ranks, dealt to the hosts in turn."""
        each = [pool.take(-(-ranks // len(self.hosts))) for pool in self._pools]
        return [each[rank % len(each)][rank // len(each)] for rank in range(ranks)]

    def host_of(self, rank: int) -> str:
        """Return where a rank of take() lives."""
        return self.hosts[rank % len(self.hosts)]

    def meeting(self, host: str = "10.77.1.1") -> dict[str, str]:
        """Return a new place on the first host."""
        self._ports += 1
        return {"url": f"tcp://{host}:{self._ports}", "name": f"job-{self._ports}"}

    def close(self) -> None:
        """End the ranks and take the network down."""
        for pool in self._pools:
            pool.close()
        cables = [("link", "del", f"port{number}") for number in range(len(self.hosts))]
        spaces = [("netns", "del", host) for host in self.hosts]
        for words in (*cables, *spaces, ("link", "del", "switch")):
            subprocess.run(["ip", *words], capture_output=True, timeout=30, check=False)


def run(*words: str, text: str = "") -> None:
    """Run a tool. Raises RuntimeError with what it said when it fails."""
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")


def inside(host: str, *words: str, text: str = "") -> None:
    """Run a tool on a host."""
    run("nsenter", f"--net=/run/netns/{host}", *words, text=text)
