"""Stores private state on disk, one owner-only file a silo. It leaves the process no other way.

A job uses ``silo.py``; ``file.py`` has the file format, and ``cipher.py`` the encryption.
"""

from .cipher import Cipher
from .silo import Vault

__all__ = ["Cipher", "Vault"]
