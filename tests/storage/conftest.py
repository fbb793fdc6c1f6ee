from object_store import place, s3_place, s3_server

__all__ = ["place", "s3_place", "s3_server"]
