"""The gateway: the one process that callers reach, and what it needs to reach the replicas.

    sockets.py    listens where the command says, and nowhere else
    haproxy.cfg   how HAProxy lets connections and requests in, as a template
    haproxy.py    HAProxy as a process: started, asked whether it answers, replaced
    replicas.py   the replicas that have joined, over a socket of the service's own folder
    gateway.py    keeps HAProxy running with the replicas that are there
    join.py       a replica's side of it: join, leave, and tell its requests from those of others

The sockets that callers reach belong to the command, so a connection waits there, and is not
refused, while HAProxy is replaced. Replicas listen on sockets in a folder that only its owner
enters, or, on a cluster, on a port of their node; either way they serve whoever has the gateway's
secret.
"""
