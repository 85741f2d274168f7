"""Error messages contain the operation, the kernel's message, and a remedy."""

from __future__ import annotations

import errno

import pytest

from nfnet import errors


def test_text_of_a_kernel_error() -> None:
    error = errors.KernelError("binding queue 3", errno.ERANGE, message="too short", hint="Do better")
    assert str(error) == (
        'binding queue 3: numerical result out of range [ERANGE]; the kernel says "too short". Do better'
    )
    assert (error.operation, error.errno, error.message, error.hint) == (
        "binding queue 3",
        errno.ERANGE,
        "too short",
        "Do better",
    )


@pytest.mark.parametrize(
    ("number", "kind", "builtin"),
    [
        (errno.EPERM, errors.NotPermittedError, PermissionError),
        (errno.EOPNOTSUPP, errors.NotSupportedError, OSError),
        (errors.ENOTSUPP, errors.NotSupportedError, OSError),
        (errno.EPROTONOSUPPORT, errors.NotSupportedError, OSError),
        (errno.ENOBUFS, errors.OverrunError, OSError),
        (errno.ENOENT, errors.KernelError, OSError),
    ],
)
def test_the_class_fits_the_errno(number: int, kind: type, builtin: type) -> None:
    error = errors.kernel_error("testing", number)
    assert type(error) is kind
    assert isinstance(error, builtin)
    assert isinstance(error, errors.NfnetError)
    assert error.errno == number


def test_the_kernels_private_errno_has_a_name() -> None:
    assert "operation not supported [ENOTSUPP]" in str(errors.kernel_error("testing", 524))


def test_all_errors_have_one_root() -> None:
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, errors.NfnetError), value
