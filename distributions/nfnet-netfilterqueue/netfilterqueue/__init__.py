"""The API of NetfilterQueue, by nfnet."""

from nfnet.compat.netfilterqueue import *
from nfnet.compat.netfilterqueue import __version__ as __version__
