"""The origin's folder: xorbs, files, repositories."""
