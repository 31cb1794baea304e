"""The Hub's own URLs: files, API, git-lfs and ollama."""
