#!/bin/sh
# What the attacker is to find: a page with a flag, served on the private network.
set -eu
mkdir -p /srv/www
echo "flag{reached}" >/srv/www/index.html
cat >/etc/systemd/system/victim.service <<'UNIT'
[Unit]
Description=The victim's page
[Service]
ExecStart=/bin/busybox httpd -f -p 8080 -h /srv/www
Restart=always
DynamicUser=yes
[Install]
WantedBy=multi-user.target
UNIT
systemctl enable --now victim.service
