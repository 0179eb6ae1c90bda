# ruby cells.rb: big integers, fibers, threads with a queue, a garbage collector at work, sprintf, a growing file.
Thread.abort_on_exception = true
queue = SizedQueue.new(4)

cells = Thread.new do
  row = Array.new(601, 0).tap { |r| r[300] = 1 }
  600.times do |generation|
    row = row.each_index.map { |i| (30 >> (row[i - 1] * 4 + row[i] * 2 + row[(i + 1) % row.size])) & 1 }
    queue << [:cells, generation, row.join.to_i(2).to_s(36)[0, 40]] if generation % 20 == 0
  end
  queue << nil
end

digits = Thread.new do
  spigot = Fiber.new do
    q, r, t, k, n, l = 1, 0, 1, 1, 3, 3
    loop do
      if 4 * q + r - t < n * t
        Fiber.yield n
        q, r, n = 10 * q, 10 * (r - n * t), (10 * (3 * q + r)) / t - 10 * n
      else
        q, r, t, k, n, l = q * k, (2 * q + r) * l, t * l, k + 1, (q * (7 * k + 2) + r * l) / (t * l), l + 2
      end
    end
  end
  30.times { |block| queue << [:pi, block, Array.new(50) { spigot.resume }.join] }
  queue << nil
end

found = Hash.new { |hash, key| hash[key] = [] }
ended = 0
until ended == 2
  item = queue.pop
  item.nil? ? ended += 1 : found[item[0]] << [item[1], item[2]]
end
[cells, digits].each(&:join)

File.open('cells.txt', 'w') do |out|
  found.keys.sort.each do |key|
    found[key].each { |number, text| out.puts format('%-5s %4d %s', key, number, text); out.flush }
  end
  900.times do |n|
    words = Array.new(800) { |i| "#{(i * 7919 + n) % 1013}:#{i}" }
    out.puts words.sort_by { |w| [w.length, w] }.first(5).join(' ')
    sleep 0.0005
  end
end
puts "rows: #{found[:cells].size}, blocks: #{found[:pi].size}"
