"""Install whisper_nb from what settings.ini says (nbdev 2.4's own template rejects Python 3.11 as a minimum)."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='], interpolation=None)
config.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
settings = config['DEFAULT']
extras = {key.removesuffix('_requirements').replace('_', '-'): settings[key].split() for key in settings if key.endswith('_requirements')}

setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=settings['author'],
    author_email=settings['author_email'],
    url=settings['git_url'],
    license='Apache-2.0',
    keywords=settings['keywords'],
    packages=find_packages(include=['whisper_nb', 'whisper_nb.*']),
    package_data={'whisper_nb': ['demo/*/*']},
    python_requires=f">={settings['min_python']}",
    install_requires=settings['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': settings['console_scripts'].split(),
                  'nbdev': [f"{settings['lib_name']}={settings['lib_path']}._modidx:d"]},
    zip_safe=False,
)
