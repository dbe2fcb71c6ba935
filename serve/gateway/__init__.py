"""The gateway: the process that callers connect to, and its connection to the replicas.

    sockets.py    listens for callers
    haproxy.cfg   HAProxy's configuration, as a template
    haproxy.py    HAProxy as a process: started, checked, replaced
    replicas.py   the replicas that have joined, over a socket in the service's own folder
    gateway.py    keeps HAProxy running with the replicas that are available
    join.py       the replica's side: joins, leaves, and accepts only requests from the gateway

The command owns the sockets that callers connect to, so connections wait and are not refused while
HAProxy is replaced. Replicas listen on sockets in a folder that only its owner can enter or, on a
cluster, on a port of their node; either way they serve only requests with the gateway's secret.
"""
