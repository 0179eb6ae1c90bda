# bash pipeline.bash NUMBERS: 200 MB through gzip and sort, then a sample of it through bash itself.
set -euo pipefail

gzip -1nc <"$1" | gzip -dc | sort -S 40M --parallel=2 -T . | gzip -1nc >sorted.gz
echo "sorted: ${PIPESTATUS[*]}"

declare -i lines=0 sum=0
declare -A endings=()
while read -r key rest; do
    lines+=1
    sum=$(((sum * 31 + 10#$key) % 1000000007))
    endings[${key: -1}]=$((${endings[${key: -1}]:-0} + 1))
done < <(gzip -dc sorted.gz | sed -n '1~200p')
echo "sample: $lines lines, sum $sum"
for ending in $(printf '%s\n' "${!endings[@]}" | sort); do
    echo "ending in $ending: ${endings[$ending]}"
done
