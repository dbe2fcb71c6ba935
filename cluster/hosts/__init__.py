"""Several honest hosts on one machine, and a Ray cluster on them.

    with Hosts() as hosts:
        cluster = RayCluster(hosts, Store(hosts), num_workers=3)
        cluster.start()
        cluster.add_profile("hosts")
        cluster.client.run("eagleray", "jobs", "list", "--cluster", "hosts")
        cluster.head.kill()  # as if its power were cut
        cluster.start_head()

Linux only, as root. `python -m cluster.hosts` starts one for people to try.
"""

from __future__ import annotations

from cluster.hosts.host import Host, HostProcess, Listener
from cluster.hosts.network import Hosts, missing_requirement
from cluster.hosts.ray_cluster import RayCluster
from cluster.hosts.store import Store

__all__ = [
    "Host",
    "HostProcess",
    "Hosts",
    "Listener",
    "RayCluster",
    "Store",
    "missing_requirement",
]
