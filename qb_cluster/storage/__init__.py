"""Files by name, in a folder of this machine or of an object store."""

from qb_cluster.storage.folder import Folder, Lock, StorageError
from qb_cluster.storage.place import open_folder

__all__ = ["Folder", "Lock", "StorageError", "open_folder"]
