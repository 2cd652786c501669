"""Archives as they are published: HMDB51's RAR of RARs, UCF101's RAR and ZIP, and others.

In: a data folder with `.rar`, `.zip`, `.tar`, `.tar.gz` or `.tgz` files at its top level. Out: the
same folder, with what they contain in `unpacked/`, one sub-folder an archive, archives within them
unpacked as well.

Which archives are unpacked:

- Each is unpacked once. `unpacked/NAME.note` says from which file (its volumes, bytes and time of
  change); an archive that changed since then is unpacked again.
- What a user has unpacked by hand is not unpacked again, since two files would then have one name.
  An archive is skipped beside a folder of its name without suffix that is not empty
  (`brush_hair.rar` beside `brush_hair/`), and so is one within an archive where such a folder is
  anywhere in the data folder and has videos in it. Of the rest, a member is left out where a file
  of its name and size is anywhere in the data folder; members of one archive that share their name
  must agree in the folder above as well.
- What is in `unpacked/` under an archive's name without a note is taken for the user's own.

An archive within an archive goes to a folder of its name, unless it brings that folder itself.
Members that macOS adds (`__MACOSX`, `.DS_Store`, `._*`) are left out.

Nothing is half-done: an archive is unpacked as `unpacked/NAME.part`, which readers pass over, and
renamed when every member is there with its checksum right (a plain TAR has none). RAR members that
are stored need no other program, compressed ones need one that `rarfile` knows: unrar, unar, 7-Zip
or bsdtar.

The way through: `names` (which files are archives, where a member may go), `reading` (members and
their streams, in whatever format), `by_hand` (what needs no unpacking), `unpacking`; `failures`
has the messages.
"""

from hybrid_video.datasets.archives.failures import ArchiveError
from hybrid_video.datasets.archives.unpacking import unpacked
from hybrid_video.datasets.listing import UNPACKED

__all__ = ["UNPACKED", "ArchiveError", "unpacked"]
