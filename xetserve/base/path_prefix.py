"""What the paths of a server begin with that lies below a path of its host, such as /models/hf."""

import re
from typing import Final

# Segments of at most 255 characters together that no client or proxy changes, and no slash at the
# end; or nothing.
PATH_PREFIX: Final = re.compile(r"(?=.{0,255}\Z)(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*")
