"""Rules of losses: functions of a model's outputs and of targets, a file for each family.

Both are positional. A loss that is given one of them as a keyword is opened, since options have no
derivative. Importing a file registers its rules.
"""

from importlib import import_module
from pkgutil import iter_modules

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
