"""Upload a folder with the official client, in its own process: `python upload.py TYPE REPO FOLDER
[--private]`.

HF_ENDPOINT, HF_HOME and HF_TOKEN come with the environment. Runs with old and new clients alike.
"""

import sys

from huggingface_hub import HfApi


def main() -> None:
    kind, repo, folder, *flags = sys.argv[1:]
    api = HfApi()
    sdk = "static" if kind == "space" else None
    api.create_repo(repo, repo_type=kind, exist_ok=True, space_sdk=sdk, private=bool(flags))
    api.upload_folder(repo_id=repo, repo_type=kind, folder_path=folder, commit_message="add files")


if __name__ == "__main__":
    main()
