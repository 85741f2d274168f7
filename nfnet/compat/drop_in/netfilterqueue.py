"""What ``import netfilterqueue`` finds first in a script that runs under `nfnet.compat`."""

import nfnet.compat

nfnet.compat.install()
