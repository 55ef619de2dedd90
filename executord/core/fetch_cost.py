"""What fetching files takes, learnt from fetches: so much a file, and so much a byte.

Least squares over two unknowns, without a constant, where older fetches count for less.
"""

from dataclasses import dataclass

_MEMORY = 0.98
_DEFAULT_SECONDS_PER_FILE = 1 / 5_000
_DEFAULT_SECONDS_PER_BYTE = 1 / 200e6
_DEFAULT_WEIGHT = 1e-3


@dataclass(slots=True)
class FetchCost:
    """The sums of a fit; they may be stored and given back. All start with a faint guess."""

    files_files: float = _DEFAULT_WEIGHT * 1e6
    files_bytes: float = 0.0
    bytes_bytes: float = _DEFAULT_WEIGHT * 1e16
    files_seconds: float = _DEFAULT_WEIGHT * 1e6 * _DEFAULT_SECONDS_PER_FILE
    bytes_seconds: float = _DEFAULT_WEIGHT * 1e16 * _DEFAULT_SECONDS_PER_BYTE

    def observe(self, *, files: int, bytes_: int, seconds: float) -> None:
        if files <= 0 or seconds <= 0:
            return
        self.files_files = self.files_files * _MEMORY + files * files
        self.files_bytes = self.files_bytes * _MEMORY + files * bytes_
        self.bytes_bytes = self.bytes_bytes * _MEMORY + bytes_ * bytes_
        self.files_seconds = self.files_seconds * _MEMORY + files * seconds
        self.bytes_seconds = self.bytes_seconds * _MEMORY + bytes_ * seconds

    @property
    def per_file_and_byte(self) -> tuple[float, float]:
        """In seconds; neither is below 0, and one of them is above."""
        ff, fb, bb = self.files_files, self.files_bytes, self.bytes_bytes
        fs, bs = self.files_seconds, self.bytes_seconds
        determinant = ff * bb - fb * fb
        if determinant > 1e-9 * ff * bb:
            per_file = (fs * bb - bs * fb) / determinant
            per_byte = (bs * ff - fs * fb) / determinant
            if per_file >= 0 and per_byte >= 0:
                return per_file, per_byte
        by_file, by_byte = fs / ff if ff else 0.0, bs / bb if bb else 0.0
        explains_more = fs * by_file >= bs * by_byte
        return (by_file, 0.0) if explains_more else (0.0, by_byte)
