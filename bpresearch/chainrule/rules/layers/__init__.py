"""Rules of layers and of functions used as layers, a file for each family.

Importing a file registers its rules.
"""

from importlib import import_module
from pkgutil import iter_modules

for _file in iter_modules(__path__):
    import_module(f"{__name__}.{_file.name}")
