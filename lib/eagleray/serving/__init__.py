"""The service without its web server: who may ask, which version answers, and the answer.

    requests.py      a request as the service takes it, and its answers
    answers.py       answers as they go over the wire
    protocol.py      the Open Inference Protocol: tensors in and out
    problems.py      refusals
    applications.py  callers, their keys, quotas and pins; kept in the database
    routes.py        which versions of a model answer by default, as canary, as shadow
    watch.py         the registry and the database, read again every second: a Snapshot
    blocking.py      calls that may block, in threads of their own
    routing.py       Snapshot + request -> the version that answers; a pure function
    fleet.py         which versions are needed: loaded beside the old, checked, then given traffic
    slots.py         the versions in memory, each loaded once
    lanes.py         a bounded queue, and the threads that decode and predict what it holds
    batches/         batch jobs of callers: started, watched, cancelled, handed out
    gate.py          who is let in: settled at the start, keys, quotas, bytes in flight
    telemetry.py     counters and times, as Prometheus reads them
    metrics_board.py those of all replicas, told by any of them
    logs.py          a line for each request, event and message, in a file of the replica
    tracing.py       a span for each request and its stages, to an OpenTelemetry collector
    usage.py         who sends how many requests to which version, by day
    links.py         images that a request only names, read under the policy
    shadows.py       how a shadow's answers compare with those that were given
    service.py       the way of a request through all of these

It knows neither Ray nor HTTP; `serve/` puts both around it.
"""
