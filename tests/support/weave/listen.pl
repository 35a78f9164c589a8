# Listens on ADDRESS:PORT, and runs a program for each connection, as its input and output.
#
#   perl listen.pl ADDRESS:PORT PROGRAM

my ($where, $program) = @ARGV;
my ($address, $port) = split /:/, $where;
$SIG{CHLD} = 'IGNORE';
socket(my $server, 2, 1, 6) or die "socket: $!\n";
setsockopt($server, 1, 2, pack('i', 1)) or die "setsockopt: $!\n";
bind($server, pack('S n C4 x8', 2, $port, split /\./, $address)) or die "bind $where: $!\n";
listen($server, 64) or die "listen: $!\n";
while (1) {
  accept(my $connection, $server) or next;
  if (fork == 0) {
    open(STDIN, '<&', $connection) and open(STDOUT, '>&', $connection) and exec $program;
    exit 1;
  }
  close $connection;
}
