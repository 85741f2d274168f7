"""What ``import netfilterqueue`` finds first in a script that runs under `nfnet.compat`."""

import _nfnet_alone  # type: ignore[import-not-found]

_nfnet_alone.install()
