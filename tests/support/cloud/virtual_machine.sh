#!/usr/bin/env bash
# The first process of a virtual machine, in namespaces of its own; the machine lives as long as its standard input.
# Takes STATE_DIR, CLOUD, NAME, ADDRESS, REPOSITORY_DIR, PYTHON; its user's public key is STATE_DIR/key.pub, and
# STATE_DIR/home has what the image has in its user's home directory.
set -euo pipefail
state=$1 cloud=$2 name=$3 address=$4 repository=$5 python=$6
key=$(cat "$state/key.pub")

mkdir -p "$state/disk"
mount -t tmpfs -o size=3g tmpfs "$state/disk"
mkdir "$state"/disk/{upper,work,root,tmp}
root=$state/disk/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$state/disk/upper,workdir=$state/disk/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=1g tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"
chmod 1777 "$state/disk/tmp"
mount --bind "$state/disk/tmp" "$root/tmp"
# The image's Python is the repository's; its own folder may lie below /tmp, which is the machine's own.
mkdir -p "$root$repository"
mount --bind "$repository" "$root$repository"
mount -o remount,ro,bind "$root$repository"
mkdir -p "$root/run/sshd"
# The Python may lie in a home directory.
for folder in "$repository" "$(readlink -f "$python")"; do
    while [ "$folder" != / ]; do
        folder=$(dirname "$folder")
        chmod o+x "$root$folder" 2>/dev/null || true
    done
done

hostname "$name"
printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" | cat - "$state/hosts" >"$root/etc/hosts"
ip link set lo up
ip address add 169.254.169.254/32 dev lo

chroot "$root" bash -euo pipefail -s -- "$key" <<'IMAGE'
id ubuntu >/dev/null 2>&1 || useradd --create-home --shell /bin/bash ubuntu
usermod --password '*' ubuntu
mkdir -p /etc/sudoers.d
echo 'ubuntu ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/ubuntu
chmod 440 /etc/sudoers.d/ubuntu
install -d -m 700 -o ubuntu -g ubuntu ~ubuntu ~ubuntu/.ssh
echo "$1" >~ubuntu/.ssh/authorized_keys
ssh-keygen -A >/dev/null
cat >/etc/ssh/sshd_box.conf <<'SSHD'
PermitRootLogin no
PasswordAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
MaxSessions 100
Subsystem sftp /usr/lib/openssh/sftp-server
SSHD
IMAGE
home=$(chroot "$root" bash -c 'echo ~ubuntu')
cp -r "$state/home/." "$root$home/"
chroot "$root" chown -R ubuntu:ubuntu "$home"
mkdir -p "$root/opt/box"
mount --bind "$state/metadata" "$root/opt/box"

chroot "$root" env PYTHONPATH="$repository/tests" "$python" -m support.cloud.metadata "$cloud" /opt/box &
chroot "$root" /usr/sbin/sshd -D -e -f /etc/ssh/sshd_box.conf &
echo ready
read -r
