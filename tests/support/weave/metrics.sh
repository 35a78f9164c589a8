#!/bin/sh
printf 'HTTP/1.0 200 OK\r\n\r\nweave_connections 0\n'
