"""Everything the runtime can refuse, one class per mistake.

    TesseraError
    ├── PackageError                 the artifact on disk is not what it says it is
    │   ├── PackageNotFound          there is no package at the path
    │   ├── ManifestInvalid          manifest.yaml does not follow the schema
    │   ├── FileMissing              the manifest lists a file that is not there
    │   ├── UnexpectedFile           a file is there that the manifest does not list
    │   ├── FileTruncated            a file has another size than the manifest says
    │   ├── DigestMismatch           a file has other bytes than the manifest says
    │   ├── UnsafePath               a path leaves the package, or is not a plain file
    │   ├── WeightsInvalid           the safetensors shards do not hold what the program needs
    │   ├── ProgramInvalid           a program.json does not follow docs/spec/program.md
    │   ├── AbiMismatch              a program or format of a version this runtime cannot read
    │   ├── TargetUnavailable        no target of the package runs on this machine
    │   │   ├── DriverUnavailable    no driver, no device, or no library that speaks to it
    │   │   ├── DeviceUnavailable    there is a device, and its driver does not give it
    │   │   ├── DriverTooOld         the driver does not read the package's code objects
    │   │   └── DeviceMemoryTooSmall the device has less memory than the plan
    │   ├── TokenizerInvalid         the tokenizer files cannot be used
    │   ├── ObjectRejected           a shared object is not the pure arithmetic it must be
    │   └── NativeLoadFailed         the system could not map a shared object
    ├── ExecutionError               a step cannot be run
    │   ├── StepTooLarge             more tokens, or a longer sequence, than the program allows
    │   ├── StepInvalid              the inputs of a step contradict one another
    │   ├── CacheNotAllocated        a step before `allocate_cache`
    │   ├── LaunchFailed             a device refused a call that should have succeeded
    │   ├── DeviceLost               a device is gone, or failed in the middle of a step
    │   └── NumericalError           logits that are NaN
    └── RequestError                 what a caller asked for cannot be done
        ├── InvalidRequest           an argument outside its range
        ├── ContextLengthExceeded    prompt and answer do not fit the model's context
        └── TemplateError            the chat template refused the messages, or ran too long

`str(error)` is what a person reads: the message, then the hint, which says what to do next. `code` is what a program
reads; it never changes once released. docs/spec/errors.md is made from these classes.
"""

from __future__ import annotations


class TesseraError(Exception):
    """Something Tessera refuses to do; every error that a user can cause derives from this."""

    code = "tessera-error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[TesseraError], message: str, hint: str) -> TesseraError:
    return kind(message, hint=hint)


class PackageError(TesseraError):
    """The package cannot be used as it lies on disk."""

    code = "package-error"


class PackageNotFound(PackageError):
    """There is no package at the path: nothing is there, or it is no folder with a `manifest.yaml`."""

    code = "package-not-found"


class ManifestInvalid(PackageError):
    """`manifest.yaml` does not follow the schema; the message names the field."""

    code = "manifest-invalid"


class FileMissing(PackageError):
    """The manifest lists a file that the package does not hold."""

    code = "file-missing"


class UnexpectedFile(PackageError):
    """The package holds a file that the manifest does not list."""

    code = "unexpected-file"


class FileTruncated(PackageError):
    """A file is shorter or longer than the manifest says."""

    code = "file-truncated"


class DigestMismatch(PackageError):
    """A file's SHA-256 differs from the manifest's; the message names the file and both digests."""

    code = "digest-mismatch"


class UnsafePath(PackageError):
    """A path is absolute, climbs out of the package, clashes with another, or is a link or device instead of a file."""

    code = "unsafe-path"


class WeightsInvalid(PackageError):
    """A safetensors shard is malformed, or lacks a tensor that the program needs in the shape it needs."""

    code = "weights-invalid"


class ProgramInvalid(PackageError):
    """A `program.json` does not follow docs/spec/program.md; the message names the key."""

    code = "program-invalid"


class AbiMismatch(PackageError):
    """The package's format or a program's ABI is of a version that this runtime does not read."""

    code = "abi-mismatch"


class TargetUnavailable(PackageError):
    """No target of the package runs on this machine; the message names both and the command that builds one."""

    code = "target-unavailable"


class DriverUnavailable(TargetUnavailable):
    """A GPU target was asked for, and there is no driver, no device, or the library that speaks to it is missing."""

    code = "driver-unavailable"


class DeviceUnavailable(TargetUnavailable):
    """There is a device that cannot be used: another process has it to itself, or its driver is not in order."""

    code = "device-unavailable"


class DriverTooOld(TargetUnavailable):
    """The device's driver is older than the code objects of the package; the message names both versions."""

    code = "driver-too-old"


class DeviceMemoryTooSmall(TargetUnavailable):
    """The device has less free memory than weights, arena or cache take; the message names both."""

    code = "device-memory-too-small"


class TokenizerInvalid(PackageError):
    """The tokenizer files of the package cannot be read or contradict the model."""

    code = "tokenizer-invalid"


class ObjectRejected(PackageError):
    """A shared object holds something other than pure arithmetic: an undefined symbol, a system call, a constructor."""

    code = "object-rejected"


class NativeLoadFailed(PackageError):
    """The operating system could not map a shared object that passed all checks."""

    code = "native-load-failed"


class ExecutionError(TesseraError):
    """A step cannot be run, or ran and gave no usable result."""

    code = "execution-error"


class StepTooLarge(ExecutionError):
    """A step has more tokens, or reaches a later position, than the program's limits allow."""

    code = "step-too-large"


class StepInvalid(ExecutionError):
    """The inputs of a step contradict one another: lengths, dtypes, or an index out of range."""

    code = "step-invalid"


class CacheNotAllocated(ExecutionError):
    """A step was asked for before `allocate_cache`."""

    code = "cache-not-allocated"


class LaunchFailed(ExecutionError):
    """A device or its driver refused a call that should have succeeded; the message has the driver's own words."""

    code = "launch-failed"


class DeviceLost(ExecutionError):
    """A device is gone or failed in the middle of a step; nothing more can be computed on it by this process."""

    code = "device-lost"


class NumericalError(ExecutionError):
    """The model produced logits that are not numbers; nothing can be sampled from them."""

    code = "numerical-error"


class RequestError(TesseraError):
    """The caller asked for something that cannot be done."""

    code = "request-error"


class InvalidRequest(RequestError):
    """An argument of a request is outside its range; the message names the argument."""

    code = "invalid-request"


class ContextLengthExceeded(RequestError):
    """Prompt and requested answer together are longer than the model's context."""

    code = "context-length-exceeded"


class TemplateError(RequestError):
    """The chat template refused the messages, is malformed, or went over its limits of time or size."""

    code = "template-error"
