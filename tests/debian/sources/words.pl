# perl words.pl: hashes, sorting, regular expressions, formats, a child that writes through a pipe, short sleeps.
use strict;
use warnings;

my $state = 12345;
sub chance { $state = ($state * 1103515245 + 12345) & 0x7fffffff; return ($state >> 8) % shift }

my %seen;
my @letters = ('a' .. 'z');
open(my $out, '>', 'words.txt') or die "words.txt: $!";
for my $round (1 .. 14) {
    for (1 .. 6000) {
        my $word = join '', map { $letters[chance(26)] } 1 .. 2 + chance(3);
        $seen{$word}++;
        $seen{$1 . uc $2}++ if $word =~ /^([a-m]+)([n-z]{2,})$/;
    }
    my @most = sort { $seen{$b} <=> $seen{$a} || $a cmp $b } keys %seen;
    printf $out "%3d %7d %s\n", $round, scalar(@most), join ' ', map { "$_=$seen{$_}" } @most[0 .. 4];
    select undef, undef, undef, 0.01;
}

my $pid = open(my $child, '-|') // die "fork: $!";
if (!$pid) {
    for my $n (1 .. 200_000) {
        my $steps = 0;
        for (my $x = $n; $x > 1 && $steps < 12; $steps++) { $x = $x % 2 ? 3 * $x + 1 : $x / 2 }
        print "$n $steps\n" if $n % 1000 == 0;
    }
    exit 0;
}
while (<$child>) { print $out $_ }
close($child) or die "the child failed: $?";
close($out) or die "words.txt: $!";
print "words: ", scalar(keys %seen), "\n";
exit 7;
