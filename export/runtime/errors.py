"""What can go wrong with a bundle, said in one sentence each."""

from __future__ import annotations


class BundleError(Exception):
    """A folder that is not a bundle this runtime can use, or bad input for one (exit code 2)."""

    exit_code = 2


class VerificationError(BundleError):
    """A bundle whose files or outputs are not what its manifest promises (exit code 1)."""

    exit_code = 1
