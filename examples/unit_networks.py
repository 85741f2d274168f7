"""Networks that a systemd unit may exchange packets with, and no others: python unit_networks.py UNIT NETWORK...

UNIT is a service, or better a slice, or the path of any control group. What stays on this machine (lo) is not concerned.
"""

import signal
import sys

from nfnet import rules

unit, *networks = sys.argv[1:]

leaves = rules.reject(hook="output", cgroup=unit, not_destination=networks, not_out_interface="lo")
comes = rules.drop(hook="input", cgroup=unit, not_source=networks, not_in_interface="lo")

signals = {signal.SIGINT, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
with rules.install(leaves, comes):
    print(f"{unit} may use {', '.join(networks)}", flush=True)
    signal.sigwait(signals)
