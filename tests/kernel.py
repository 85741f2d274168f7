"""What the tests here use of `nfnet.testing`."""

from nfnet.testing import FakeKernel, error_message, packet_message

__all__ = ["FakeKernel", "error_message", "packet_message"]
