#!/usr/bin/env bash
# Run the matrix's cell for Python 3.14 where the distribution does not have it: in a folder with Debian's testing.
# Needs root, and debootstrap (apt-get install debootstrap). What is not committed is not tried.
set -euo pipefail
cd "$(dirname "$0")/.."
root=${PY314_ROOT:-/var/tmp/onebox-python-3.14}

if [[ ! -x $root/usr/bin/python3.14 ]]; then
  [[ -e /usr/share/debootstrap/scripts/forky ]] || ln -s sid /usr/share/debootstrap/scripts/forky
  debootstrap --variant=minbase --include=python3.14,python3.14-venv,git,make,ca-certificates,tzdata forky "$root"
fi
# The package index, its certificate and the names of hosts, as pip on this machine has them.
mkdir -p "$root/opt/.config/pip" "$root/opt/src"
for file in /etc/pip.conf "$HOME/.config/pip/pip.conf"; do
  [[ ! -e $file ]] || cp "$file" "$root/${file/#$HOME//opt}"
done
certificates=${PIP_CERT:-${REQUESTS_CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}}
cp -L "$certificates" "$root/etc/ssl/pip.pem"
cp -L /etc/hosts /etc/resolv.conf "$root/etc/"
mountpoint -q "$root/proc" || mount --bind /proc "$root/proc"
mountpoint -q "$root/dev" || mount --bind /dev "$root/dev"
trap 'umount "$root/proc" "$root/dev"' EXIT
rm -rf "$root/opt/src"
git clone --quiet . "$root/opt/src"

chroot "$root" /usr/bin/env -i HOME=/opt LANG=C.UTF-8 PATH=/opt/venv/bin:/usr/bin:/bin PIP_CERT=/etc/ssl/pip.pem SSL_CERT_FILE=/etc/ssl/pip.pem \
  bash -euc '
    cd /opt/src
    [[ -d /opt/venv ]] || python3.14 -m venv /opt/venv
    pip install --quiet --disable-pip-version-check uv packaging psutil -c constraints/3.3.txt
    python scripts/matrix.py 3.3/3.14'
