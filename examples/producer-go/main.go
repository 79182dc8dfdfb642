// Publishes the writes on stdin. Each line holds, between tabs, message type, operation, key and body, and may hold an idempotency
// key. Prints each write's message id and idempotency key, in the order of the lines.
package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	usage       = "producer projects/PROJECT/topics/TOPIC [SLOT_BITS [GIVE_UP_SECONDS]] < WRITES"
	maxAttempts = 20
)

var topicName = regexp.MustCompile(`^projects/[^/]+/topics/[^/]+$`)

func main() {
	arguments := append(os.Args[1:], []string{"", "10", "60"}[min(len(os.Args)-1, 3):]...)
	slotBits, err := strconv.Atoi(arguments[1])
	giveUpSeconds, faulty := strconv.ParseFloat(arguments[2], 64)
	if !topicName.MatchString(arguments[0]) || err != nil || slotBits < 1 || slotBits > 16 || faulty != nil || !(giveUpSeconds > 0) {
		end(2, usage)
	}
	writes, err := read(os.Stdin)
	if err != nil {
		end(2, err.Error())
	}
	topic := &Topic{
		// Message ordering needs all producers of a slot to publish to one region: name its endpoint.
		URL:    cmp.Or(os.Getenv("PUBSUB_URL"), "https://pubsub.googleapis.com") + "/v1/" + arguments[0],
		Token:  func() (string, error) { return os.Getenv("PUBSUB_TOKEN"), nil },
		GiveUp: time.Duration(giveUpSeconds * float64(time.Second)),
		Client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: maxRequests}},
	}
	producer := NewProducer(topic, func(key string) string { return SlotDigits(key, slotBits) })
	report := func(text string) { fmt.Fprintln(os.Stderr, text) }
	ids, err := producer.PublishAll(writes, maxAttempts, report)
	if err != nil {
		end(1, "not every write was published: "+err.Error())
	}
	out := bufio.NewWriter(os.Stdout)
	for i, write := range writes {
		fmt.Fprintf(out, "%s\t%s\n", ids[i], write.IdempotencyKey)
	}
	if err := out.Flush(); err != nil {
		end(1, err.Error())
	}
}

func read(input io.Reader) ([]Write, error) {
	text, err := io.ReadAll(input)
	if err != nil {
		return nil, err
	}
	var writes []Write
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if line == "" {
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) != 4 && len(fields) != 5 {
			return nil, fmt.Errorf("line %d: type, operation, key and body are needed, with tabs between them", i+1)
		}
		write := NewWrite(fields[0], fields[1], fields[2], []byte(fields[3]))
		if len(fields) == 5 {
			write.IdempotencyKey = fields[4]
		}
		writes = append(writes, write)
	}
	return writes, nil
}

func end(code int, text string) {
	fmt.Fprintln(os.Stderr, text)
	os.Exit(code)
}
