"""Restricts a systemd unit to networks: python unit_networks.py UNIT NETWORK...

UNIT is a slice, a service, or the path of another control group. Packets that stay on this
machine (lo) always pass.
"""

import signal
import sys

from nfnet import rules

unit, *networks = sys.argv[1:]

sent = {"hook": "output", "not_out_interface": "lo", "not_destination": networks}
received = {"hook": "input", "not_in_interface": "lo", "not_source": networks}

signals = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
with rules.install(rules.reject(cgroup=unit, **sent), rules.drop(cgroup=unit, **received)):
    print(f"{unit} may use {', '.join(networks)}", flush=True)
    signal.sigwait(signals)
