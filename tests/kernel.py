"""The model of the kernel and the builders of messages, which these tests take from `nfnet.testing`."""

from nfnet.testing import FakeKernel, error_message, packet_message

__all__ = ["FakeKernel", "error_message", "packet_message"]
