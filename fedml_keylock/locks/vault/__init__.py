"""Private state on disk, one owner-only file a silo: the only way that it leaves the process.

``silo.py`` is what a job uses, ``file.py`` the file's form, and ``cipher.py`` its encryption.
"""

from .cipher import Cipher
from .silo import Vault

__all__ = ["Cipher", "Vault"]
