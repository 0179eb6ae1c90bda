# sh pipeline.sh DIRECTORY: counts until the file DIRECTORY/stop is there, through four programs.
cd "$1"
number=0
while [ ! -e stop ]; do
	number=$((number + 1))
	echo "line $number"
done | sed 's/line/row/' | tee progress | md5sum
